"""GPT-2 checkpoints in the layout of ``transformers`` (GPT2LMHeadModel), strict in names, shapes and settings.

Sizes follow from the tensors. ``config.json`` provides settings that tensors do not determine: attention heads,
activation, epsilon, the begin-of-text token and whether the head is tied to the embedding.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor

from didi.errors import UsageError
from didi.models.autoregressive import Activation, AutoregressiveConfig, AutoregressiveLM
from didi.models.checkpoint_keys import bare_keys
from didi.models.convert import check_keys, float32_copies
from didi.models.foreign import Checkpoint, find_weights, read_weights, settings_beside
from didi.models.layout_settings import check_required, epsilon_of
from didi.models.networks import without_weights

HUB_NAMES = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "distilgpt2": "distilbert/distilgpt2",
}
"""Original repository names without an owner, and their present names."""
PREFIX, HEAD = "transformer.", "lm_head.weight"
EMBEDDING, POSITIONS, INNER = (f"{PREFIX}{name}.weight" for name in ("wte", "wpe", "h.0.mlp.c_fc"))
CAUSAL_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")  # constants in older files
END_OF_TEXT, NUM_SYMBOLS = 50_256, 50_257  # of the public GPT-2
REQUIRED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Settings that affect the network, with the only supported values."""
SIZES = {  # setting: names in config.json, and the tensor and axis with this size
    "vocab_size": (("vocab_size",), EMBEDDING, 0),
    "length": (("n_positions", "max_position_embeddings"), POSITIONS, 0),
    "hidden_size": (("n_embd", "hidden_size"), EMBEDDING, 1),
    "inner_size": (("n_inner",), INNER, 1),
}


def read_gpt2(source: str, *, revision: str | None = None) -> Checkpoint:
    """Read a file, a folder, a Hub repository ``owner/name`` or one of ``HUB_NAMES``; every key is kept.

    Raises:
        UsageError: The source does not exist, or is not a checkpoint that can be read safely.
        DidiError: The Hub could not be reached.
    """
    is_there = os.path.exists(source)  # noqa: PTH110 - unlike pathlib, it accepts names that are too long
    if not is_there and "/" not in source and source not in HUB_NAMES:
        raise UsageError(
            f"a GPT-2 is a file, a folder, a Hub repository owner/name, or one of {', '.join(HUB_NAMES)}; {source!r} "
            "is none"
        )
    file = find_weights(source if is_there else HUB_NAMES.get(source, source), revision=revision)
    named, shadow = read_weights(file)
    if shadow is not None:
        raise UsageError(f"a GPT-2 checkpoint holds one set of weights; {file} has an 'ema' beside it: save one alone")
    return Checkpoint(named, None, settings=settings_beside(file), folder=file.parent)


def gpt2_from_state_dict(
    state_dict: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    num_heads: int | None = None,
    is_tied: bool = False,
) -> AutoregressiveLM:
    """An autoregressive network from the state dict of a GPT2LMHeadModel.

    Args:
        state_dict: Keys with or without ``transformer.``; weights of any floating-point type. A tied head may be
            missing. Buffers of the causal mask (``attn.bias``, ``attn.masked_bias``) are ignored.
        settings: ``config.json``; empty if there is none.
        num_heads: Number of attention heads, overrides ``settings``.
        is_tied: True if the head is the embedding matrix, overrides ``settings``.

    Raises:
        UsageError: A key is missing, extra or has another shape (the message names all of them), or a setting
            contradicts the weights or is not supported.
    """
    weights = _with_prefix(bare_keys(state_dict))
    for name in (EMBEDDING, POSITIONS, INNER):
        if name not in weights or weights[name].ndim != 2:
            problem = f"got shape {list(weights[name].shape)}" if name in weights else f"missing {name}"
            raise UsageError(f"a GPT-2 checkpoint holds the matrix {name}, from which sizes are read; {problem}")
    check_required(settings, REQUIRED, source="a GPT-2 checkpoint")
    is_tied = is_tied or _is_tied(weights, settings)
    if is_tied and not _is_head_embedding(weights):
        raise UsageError(
            f"the head of a tied GPT-2 is its embedding; {HEAD} differs from {EMBEDDING}: write tie_word_embeddings "
            "false into config.json if the head is a separate matrix"
        )
    if is_tied:
        weights.pop(HEAD, None)
    config = _config(weights, settings, num_heads, is_tied)
    network: AutoregressiveLM = without_weights(lambda: AutoregressiveLM(config))
    root = "gpt2."
    check_keys(
        {name.removeprefix(root): value for name, value in network.state_dict().items()},
        weights,
        source="a GPT-2 checkpoint",
    )
    renamed = {root + name: value for name, value in float32_copies(weights).items()}
    network.load_state_dict(renamed, strict=True, assign=True)
    return network.requires_grad_(True).eval()


def _with_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the keys of GPT2LMHeadModel, without the causal masks."""
    has_prefix = any(name.startswith(PREFIX) for name in weights)
    named = {name if has_prefix or name == HEAD else PREFIX + name: value for name, value in weights.items()}
    return {name: value for name, value in named.items() if not CAUSAL_MASK.fullmatch(name)}


def _is_tied(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> bool:
    """Whether the head is tied: by ``config.json`` (true by default); without ``config.json``, by the weights."""
    return bool(settings.get("tie_word_embeddings", True)) if settings else _is_head_embedding(weights)


def _is_head_embedding(weights: Mapping[str, Tensor]) -> bool:
    """Whether the head is missing or equal to the embedding matrix."""
    head, embedding = weights.get(HEAD), weights[EMBEDDING]
    return head is None or (head.shape == embedding.shape and bool((head == embedding).all()))


def _config(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], num_heads: int | None, is_tied: bool
) -> AutoregressiveConfig:
    """Sizes from the weights, which ``config.json`` must not contradict; other settings from ``config.json``."""
    sizes = {size: weights[name].shape[axis] for size, (_, name, axis) in SIZES.items()}
    for size, (names, tensor, _) in SIZES.items():
        given = next((settings[name] for name in names if settings.get(name) is not None), sizes[size])
        if given != sizes[size]:
            raise UsageError(
                f"{names[0]} in config.json is a size of the weights; it is {given!r:.80}, and {tensor} has shape "
                f"{list(weights[tensor].shape)}"
            )
    vocab_size = sizes["vocab_size"]
    return AutoregressiveConfig(
        **sizes,
        mask_id=None,
        num_blocks=_num_blocks(weights, settings),
        num_heads=_num_heads(settings) if num_heads is None else num_heads,
        begin_id=_begin_id(settings, vocab_size),
        is_tied=is_tied,
        activation=_activation(settings),
        layer_norm_epsilon=epsilon_of(settings, "layer_norm_epsilon", 1e-5),
    )


def _num_blocks(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> int:
    """Number of blocks in ``config.json``, so that keys of missing blocks are reported; else that of the weights."""
    blocks = {match[1] for name in weights if (match := re.match(r"transformer\.h\.(\d+)\.", name))}
    num_blocks = settings.get("n_layer", settings.get("num_hidden_layers", len(blocks)))
    if type(num_blocks) is not int or not 1 <= num_blocks <= len(weights):
        raise UsageError(f"n_layer in config.json is {len(blocks)}, the blocks of the weights; got {num_blocks!r:.80}")
    return num_blocks


def _num_heads(settings: Mapping[str, Any]) -> int:
    num_heads = settings.get("n_head", settings.get("num_attention_heads"))
    if type(num_heads) is not int or num_heads < 1:
        problem = "is missing" if num_heads is None else f"is {num_heads!r:.80}"
        raise UsageError(
            f"n_head, a whole number, must be in config.json, since no tensor determines it; it {problem}: add it there"
        )
    return num_heads


def _begin_id(settings: Mapping[str, Any], vocab_size: int) -> int:
    begin_id = settings.get("bos_token_id", END_OF_TEXT if vocab_size == NUM_SYMBOLS else None)
    if type(begin_id) is not int or not 0 <= begin_id < vocab_size:
        raise UsageError(
            f"bos_token_id in config.json, which begins a text, is one of {vocab_size} symbols; got {begin_id!r:.80}: "
            "add the id of the end-of-text token there"
        )
    return begin_id


def _activation(settings: Mapping[str, Any]) -> Activation:
    name: Any = settings.get("activation_function", "gelu_new")
    if name not in get_args(Activation):
        raise UsageError(
            f"activation_function in config.json is one of {', '.join(get_args(Activation))}; got {name!r:.80}"
        )
    activation: Activation = name
    return activation
