"""Public checkpoints into networks: strict by name and by shape."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from didi.errors import UsageError
from didi.models.dit import DiT, DiTConfig

BACKBONE_PREFIX = "backbone."


def dit_from_state_dict(
    state_dict: Mapping[str, Tensor],
    num_heads: int,
    *,
    mask_id: int | None = None,
    length: int = 1024,
    is_time_conditioned: bool = False,
) -> DiT:
    """A DiT from a state dict in the public MDLM layout.

    Args:
        state_dict: bare keys, or all of them under ``backbone.`` as in Hub repositories.
        num_heads: attention heads, which no tensor's shape tells.
        mask_id: index of [MASK]; the last symbol by default.
        length: context length, which no tensor's shape tells; rotary positions have no limit of their own.
        is_time_conditioned: whether samplers tell the network its noise level.

    Raises:
        UsageError: a key is missing, extra, or has another shape; all of them are named.
    """
    weights = {name.removeprefix(BACKBONE_PREFIX): value for name, value in state_dict.items()}
    if len(weights) != len(state_dict):
        raise UsageError("a state dict has each key once; this one holds keys both with and without 'backbone.'")
    config = _infer_config(weights, num_heads, mask_id, length, is_time_conditioned)
    with torch.device("meta"):
        network = DiT(config)
    check_keys(network.state_dict(), weights, source="MDLM checkpoint")
    network.load_state_dict({name: value.clone() for name, value in weights.items()}, strict=True, assign=True)
    return network.requires_grad_(True)


def check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a state dict that is not exactly the expected one.

    Raises:
        UsageError: names every key that is missing, extra or mis-shaped.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"extra {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {list(found[name].shape)}, not {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if problems:
        raise UsageError(f"every key of a {source} is used and has its shape; {'; '.join(problems)}")


def _infer_config(
    weights: Mapping[str, Tensor], num_heads: int, mask_id: int | None, length: int, is_time_conditioned: bool
) -> DiTConfig:
    for name, ndim in (("vocab_embed.embedding", 2), ("sigma_map.mlp.2.weight", 2)):
        if name not in weights:
            raise UsageError(f"an MDLM checkpoint holds {name}, which tells its sizes; missing {name}")
        if weights[name].ndim != ndim:
            raise UsageError(f"{name} has {ndim} axes; got shape {list(weights[name].shape)}")
    vocab_size, hidden_size = weights["vocab_embed.embedding"].shape
    indices = [int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))]
    return DiTConfig(
        vocab_size=vocab_size,
        mask_id=vocab_size - 1 if mask_id is None else mask_id,
        length=length,
        hidden_size=hidden_size,
        num_blocks=max(indices, default=-1) + 1,
        num_heads=num_heads,
        cond_dim=weights["sigma_map.mlp.2.weight"].shape[0],
        is_time_conditioned=is_time_conditioned,
    )
