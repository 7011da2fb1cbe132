"""The checkpoint of AntiBERTy in the layout of ``transformers`` (BertForMaskedLM), strict in names and settings.

Its 25 symbols are found by name in the vocabulary of ESM-2, which all networks of proteins here share. Letters that
AntiBERTy does not know have the embedding of its ``[UNK]``, as in its tokenizer, and are never drawn.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from didi.errors import UsageError
from didi.models.bert import Bert, BertConfig
from didi.models.checkpoint_keys import bare_keys
from didi.models.convert import check_keys, float32_copies
from didi.models.layout_settings import check_required, check_sizes, epsilon_of
from didi.models.networks import without_weights
from didi.models.proteins import ALPHABET, RESIDUES

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RESIDUES)
"""The symbols of AntiBERTy; the index of a symbol is its id."""
_SPECIAL = {"<pad>": "[PAD]", "<cls>": "[CLS]", "<eos>": "[SEP]", "<mask>": "[MASK]"}
_NAMES = [_SPECIAL.get(name, name) for name in ALPHABET]
SYMBOLS = tuple(VOCABULARY.index(name if name in VOCABULARY else "[UNK]") for name in _NAMES)
"""For each symbol of ESM-2, the id of the symbol of AntiBERTy."""

EMBEDDING, POSITIONS, SEGMENTS = (
    f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")
)
BIAS, DECODER = "cls.predictions.bias", "cls.predictions.decoder"
UNREAD = re.compile(
    r"bert\.(embeddings\.position_ids|pooler\.dense\.(weight|bias))|cls\.(species|chain|graft)\.(weight|bias)"
)
"""Parts of the public checkpoint that do not affect logits: heads for species, chain and grafting, and their pooler."""
BLOCK = re.compile(r"bert\.encoder\.layer\.(\d{1,4})\.(.+)\.(weight|bias)")
QUERY_KEY_VALUE = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
BLOCK_MODULES = {  # name in ``bert.Block`` -> name in a public layer
    "attn_out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
    "norm2": "output.LayerNorm",
}
MODULES = {  # name in ``bert.Bert`` -> public name
    "norm_embed": "bert.embeddings.LayerNorm",
    "output_layer.dense": "cls.predictions.transform.dense",
    "output_layer.norm": "cls.predictions.transform.LayerNorm",
}
REQUIRED = {  # settings that affect the network, with the only supported values
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "hidden_act": "gelu",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "vocab_size": len(VOCABULARY),
}


def antiberty_from_state_dict(state_dict: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Bert:
    """A denoiser from the state dict of AntiBERTy, or of a BertForMaskedLM with its vocabulary.

    Args:
        state_dict: keys with or without the prefixes of ``checkpoint_keys``; weights of any floating-point type. The
            matrix of the head, which is tied, may be missing. Keys in ``UNREAD`` are ignored.
        settings: ``config.json``, which has the number of attention heads.

    Raises:
        UsageError: a key is missing, extra or has another shape (the message names all of them), or a setting
            contradicts the weights or is not supported.
    """
    weights = {name: value for name, value in bare_keys(state_dict).items() if not UNREAD.fullmatch(name)}
    for name in (EMBEDDING, POSITIONS):
        if name not in weights or weights[name].ndim != 2:
            problem = f"got shape {list(weights[name].shape)}" if name in weights else f"missing {name}"
            raise UsageError(f"a checkpoint of AntiBERTy holds the matrix {name}, from which sizes are read; {problem}")
    config = _config(weights, settings)
    _check_tied(weights)
    for name in (f"{DECODER}.weight", f"{DECODER}.bias"):
        weights.pop(name, None)
    network: Bert = without_weights(lambda: Bert(config))
    check_keys(_public_shapes(network), weights, source="a checkpoint of AntiBERTy")
    network.load_state_dict(_from_public_names(float32_copies(weights), network), strict=True, assign=True)
    return network.requires_grad_(True).eval()


def _config(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> BertConfig:
    """Sizes from the weights, which ``config.json`` must not contradict; other settings from ``config.json``."""
    check_required(settings, REQUIRED, source="a checkpoint of AntiBERTy")
    length, hidden_size = weights[POSITIONS].shape
    inner = weights.get("bert.encoder.layer.0.intermediate.dense.weight", torch.empty(4 * hidden_size, 0))
    sizes = {
        "hidden_size": hidden_size,
        "max_position_embeddings": length,
        "num_hidden_layers": 1
        + max((int(match[1]) for name in weights if (match := BLOCK.fullmatch(name))), default=-1),
        "intermediate_size": inner.shape[0],
    }
    check_sizes(settings, sizes)
    num_heads = settings.get("num_attention_heads")
    if type(num_heads) is not int:
        raise UsageError(
            "num_attention_heads, a whole number, must be in config.json, since no tensor determines it; got "
            f"{num_heads!r:.80}: add it there"
        )
    return BertConfig(
        length=length,
        hidden_size=hidden_size,
        num_blocks=sizes["num_hidden_layers"],
        num_heads=num_heads,
        inner_size=inner.shape[0],
        layer_norm_epsilon=epsilon_of(settings, "layer_norm_eps", 1e-12),
    )


def _check_tied(weights: Mapping[str, Tensor]) -> None:
    """Refuse a head whose matrix or second bias differs from the embedding and the first bias."""
    for name, other in ((f"{DECODER}.weight", EMBEDDING), (f"{DECODER}.bias", BIAS)):
        if name in weights and other in weights and not torch.equal(weights[name], weights[other]):
            raise UsageError(
                f"{name} of AntiBERTy is equal to {other}; this checkpoint has another: it is not supported"
            )


def _public_shapes(network: Bert) -> dict[str, Tensor]:
    """Tensors of the public shapes under the public names, for ``check_keys``."""
    shapes = {
        EMBEDDING: network.vocab_embed.embedding[: len(VOCABULARY)],
        POSITIONS: network.position_embed,
        SEGMENTS: network.position_embed[:2],
        BIAS: network.output_layer.bias[: len(VOCABULARY)],
    }
    state = network.state_dict()
    for public, name, part in _public_names(network):
        shapes[public] = state[name] if part is None else state[name].chunk(3)[part]
    return shapes


def _from_public_names(weights: Mapping[str, Tensor], network: Bert) -> dict[str, Tensor]:
    """The state dict of a ``Bert`` from the public names, in the vocabulary of ESM-2."""
    symbols = torch.tensor(SYMBOLS)
    renamed = {
        "vocab_embed.embedding": weights[EMBEDDING][symbols],
        "position_embed": weights[POSITIONS] + weights[SEGMENTS][0],  # a protein is one segment, the first
        "output_layer.bias": weights[BIAS][symbols],
    }
    parts: dict[str, list[Tensor]] = {}
    for public, name, _ in _public_names(network):
        parts.setdefault(name, []).append(weights[public])
    return renamed | {name: torch.cat(tensors) for name, tensors in parts.items()}


def _public_names(network: Bert) -> list[tuple[str, str, int | None]]:
    """Public name, name in the network, and third of the network's tensor (None: the whole), of each public tensor."""
    layers: list[tuple[str, str, int | None]] = [(public, name, None) for name, public in MODULES.items()]
    for number in range(len(network.blocks)):
        layer, block = f"bert.encoder.layer.{number}.", f"blocks.{number}."
        layers += [(layer + public, f"{block}attn_qkv", part) for part, public in enumerate(QUERY_KEY_VALUE)]
        layers += [(layer + public, block + name, None) for name, public in BLOCK_MODULES.items()]
    return [(f"{a}.{kind}", f"{b}.{kind}", part) for a, b, part in layers for kind in ("weight", "bias")]
