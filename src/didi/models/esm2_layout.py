"""ESM-2 and DPLM checkpoints in the layout of ``transformers`` (EsmForMaskedLM), strict in names, shapes and settings.

Sizes follow from the tensors. ``config.json`` provides settings that tensors do not determine: attention heads,
epsilon, token dropout and whether the head is tied to the embedding.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from didi.errors import UsageError
from didi.models.checkpoint_keys import bare_keys
from didi.models.convert import check_keys, float32_copies
from didi.models.esm2 import SIZES, Esm2, Esm2Config
from didi.models.layers import Rotary
from didi.models.layout_settings import check_required, check_sizes, epsilon_of
from didi.models.networks import without_weights
from didi.models.proteins import MASK_ID, PAD_ID
from didi.models.untrusted import MAX_INT

EMBEDDING, DECODER = "esm.embeddings.word_embeddings.weight", "lm_head.decoder.weight"
PREFIXES = ("model.", "net.")
"""Wrapper modules of training checkpoints of DPLM; any number of them stands at the front of a key."""
UNREAD = re.compile(r"esm\.(contact_head\.regression\.(weight|bias)|embeddings\.position_(ids|embeddings\.weight))")
"""Parts of the public checkpoints that do not affect logits: contact prediction and unused position embeddings."""
FREQUENCIES = re.compile(r"esm\.(encoder\.layer\.\d+\.attention\.self\.)?rotary_embeddings\.inv_freq")
BLOCK = re.compile(r"esm\.encoder\.layer\.(\d{1,4})\.(.+)\.(weight|bias)")
QUERY_KEY_VALUE = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
BLOCK_MODULES = {  # name in a public layer -> name in ``esm2.Block``
    "attention.LayerNorm": "norm1",
    "attention.output.dense": "attn_out",
    "LayerNorm": "norm2",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
}
OTHER_TENSORS = {  # public name -> name in ``esm2.Esm2``
    EMBEDDING: "vocab_embed.embedding",
    "esm.encoder.emb_layer_norm_after.weight": "norm_final.weight",
    "esm.encoder.emb_layer_norm_after.bias": "norm_final.bias",
    "lm_head.dense.weight": "output_layer.dense.weight",
    "lm_head.dense.bias": "output_layer.dense.bias",
    "lm_head.layer_norm.weight": "output_layer.norm.weight",
    "lm_head.layer_norm.bias": "output_layer.norm.bias",
    DECODER: "output_layer.linear.weight",
    "lm_head.bias": "output_layer.bias",
}
REQUIRED = {  # settings that affect the network, with the only supported values
    "model_type": "esm",
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "hidden_act": "gelu",
    "rope_theta": 10_000.0,
}


def esm2_from_state_dict(
    state_dict: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    *,
    num_heads: int | None = None,
    length: int | None = None,
) -> Esm2:
    """An ESM-2 denoiser from the state dict of an EsmForMaskedLM.

    Args:
        state_dict: keys with or without the prefixes of ``checkpoint_keys`` and ``PREFIXES``; weights of any
            floating-point type. The matrix of a tied head may be missing. Keys in ``UNREAD`` are ignored.
        settings: ``config.json``; empty if there is none.
        num_heads: number of attention heads, overrides ``settings``.
        length: context length in positions, overrides ``settings``.

    Raises:
        UsageError: a key is missing, extra or has another shape (the message names all of them), or a setting
            contradicts the weights or is not supported.
    """
    weights = _without_prefixes(bare_keys(state_dict))
    if EMBEDDING not in weights or weights[EMBEDDING].ndim != 2:
        problem = f"got shape {list(weights[EMBEDDING].shape)}" if EMBEDDING in weights else f"missing {EMBEDDING}"
        raise UsageError(f"an ESM-2 checkpoint holds the matrix {EMBEDDING}, from which sizes are read; {problem}")
    check_required(settings, REQUIRED, source="an ESM-2 checkpoint")
    config = _config(weights, settings, num_heads, length)
    if config.is_tied:
        weights.pop(DECODER, None)
    network: Esm2 = without_weights(lambda: Esm2(config))
    _check_frequencies(weights, config)
    weights = {name: value for name, value in weights.items() if not FREQUENCIES.fullmatch(name)}
    expected = to_public_names(network.state_dict())
    check_keys(expected, weights, source="an ESM-2 checkpoint")
    renamed = _from_public_names(float32_copies(weights))
    # Some files have rounded frequencies; training used the exact ones.
    renamed["rotary_emb.inv_freq"] = Rotary(config.hidden_size // config.num_heads).inv_freq
    network.load_state_dict(renamed, strict=True, assign=True)
    return network.requires_grad_(True).eval()


def to_public_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an ``Esm2`` under the keys of EsmForMaskedLM, without the constant rotary frequencies."""
    tensors = {name: public for public, name in OTHER_TENSORS.items()}
    modules = {name: public for public, name in BLOCK_MODULES.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in tensors:
            renamed[tensors[name]] = value
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            number, module, kind = match.groups()
            layer = f"esm.encoder.layer.{number}."
            if module == "attn_qkv":
                parts = zip(QUERY_KEY_VALUE, value.chunk(3), strict=True)
                renamed |= {f"{layer}{public}.{kind}": part for public, part in parts}
            else:
                renamed[f"{layer}{modules[module]}.{kind}"] = value
    return renamed


def _from_public_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_public_names``, for a complete state dict."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = BLOCK.fullmatch(name)
        if match is None:
            renamed[OTHER_TENSORS[name]] = value
        elif match[2] in BLOCK_MODULES:
            renamed[f"blocks.{match[1]}.{BLOCK_MODULES[match[2]]}.{match[3]}"] = value
        elif match[2] == QUERY_KEY_VALUE[0]:
            parts = [weights[f"esm.encoder.layer.{match[1]}.{public}.{match[3]}"] for public in QUERY_KEY_VALUE]
            renamed[f"blocks.{match[1]}.attn_qkv.{match[3]}"] = torch.cat(parts)
    return renamed


def _without_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the keys of EsmForMaskedLM, without ``UNREAD`` ones."""
    result: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if name in result:
            raise UsageError(f"a state dict has each key once; this one holds {name} with and without a prefix")
        if not UNREAD.fullmatch(name):
            result[name] = value
    return result


def _config(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], num_heads: int | None, length: int | None
) -> Esm2Config:
    """Sizes from the weights, which ``config.json`` must not contradict; other settings from ``config.json``."""
    vocab_size, hidden_size = weights[EMBEDDING].shape
    inner = weights.get("esm.encoder.layer.0.intermediate.dense.weight", torch.empty(4 * hidden_size, 0))
    num_blocks = 1 + max((int(match[1]) for name in weights if (match := BLOCK.fullmatch(name))), default=-1)
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": inner.shape[0]}
    check_sizes(settings, sizes)
    for name, number in {"mask_token_id": MASK_ID, "pad_token_id": PAD_ID}.items():
        if (given := settings.get(name, number)) not in (number, None):
            raise UsageError(f"{name} in config.json is {number} in the vocabulary of ESM-2; got {given!r:.80}")
    return Esm2Config(
        vocab_size=vocab_size,
        length=_whole(
            "max_position_embeddings", settings.get("max_position_embeddings", 1026) if length is None else length
        ),
        hidden_size=hidden_size,
        num_blocks=_whole("num_hidden_layers", settings.get("num_hidden_layers", num_blocks), high=len(weights)),
        num_heads=_num_heads(hidden_size, num_blocks, settings, num_heads),
        inner_size=inner.shape[0],
        layer_norm_epsilon=epsilon_of(settings, "layer_norm_eps", 1e-5),
        is_tied=_is_tied(weights, settings),
        has_token_dropout=bool(settings.get("token_dropout", not settings)),
    )


def _num_heads(hidden_size: int, num_blocks: int, settings: Mapping[str, Any], num_heads: int | None) -> int:
    """``num_heads``, or the number in ``config.json``, or that of the published network of this size."""
    num_heads = settings.get("num_attention_heads") if num_heads is None else num_heads
    shape = (hidden_size, num_blocks)
    published = [size.num_heads for size in SIZES.values() if (size.hidden_size, size.num_blocks) == shape]
    if num_heads is None and not published:
        raise UsageError(
            "num_attention_heads, a whole number, must be in config.json, since no tensor determines it: add it there"
        )
    return _whole("num_attention_heads", published[0] if num_heads is None else num_heads)


def _is_tied(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> bool:
    """Whether the head is tied: equal to the embedding, or missing and not ruled out by ``config.json``."""
    head, embedding = weights.get(DECODER), weights[EMBEDDING]
    if head is None:
        return bool(settings.get("tie_word_embeddings", True))
    is_tied = head.shape == embedding.shape and bool((head == embedding).all())
    if settings.get("tie_word_embeddings") and not is_tied:
        raise UsageError(
            f"the head of a tied ESM-2 is its embedding; {DECODER} differs from {EMBEDDING}: write tie_word_embeddings "
            "false into config.json if the head is a separate matrix"
        )
    return is_tied


def _check_frequencies(weights: Mapping[str, Tensor], config: Esm2Config) -> None:
    """Refuse rotary frequencies that differ by more than rounding from those of base 10,000."""
    exact = Rotary(config.hidden_size // config.num_heads).inv_freq
    for name, value in weights.items():
        if FREQUENCIES.fullmatch(name) and not (
            value.shape == exact.shape and torch.allclose(value.float(), exact, rtol=2**-8, atol=2**-24)
        ):
            raise UsageError(
                f"rotary frequencies are 10000^(-2i/d) with d = {2 * len(exact)} dimensions per head; {name} differs: "
                "check num_attention_heads in config.json"
            )


def _whole(name: str, value: Any, *, high: int = MAX_INT) -> int:
    if type(value) is not int or not 1 <= value <= high:
        raise UsageError(f"{name} in config.json is a whole number in [1, {high}]; got {value!r:.80}")
    return value
