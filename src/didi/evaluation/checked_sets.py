"""Checks of the token sequences that a user passes to an evaluation."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from didi.errors import UsageError
from didi.models.bundle import Bundle


def checked_sets(bundle: Bundle, data: Any, anchors: Mapping[str, Any] | None) -> dict[str, Int[Tensor, "_ l"]]:
    """Data and anchors as int64 tensors on the CPU, by name.

    Args:
        bundle: the model whose vocabulary the sequences use.
        data: held-out sequences, or None; a tensor, an array or a list of rows.
        anchors: further sets by name.

    Raises:
        UsageError: a set is empty, is not a table of whole numbers, has token ids outside the bundle's vocabulary, or
            has rows longer than the network's context.
    """
    sets = ({} if data is None else {"data": data}) | dict(anchors or {})
    return {name: _checked(name, values, bundle) for name, values in sets.items()}


def _checked(name: str, values: Any, bundle: Bundle) -> Int[Tensor, "_ l"]:
    rule, network = f"{name} is a table of whole numbers, a sequence of tokens in each row", bundle.network()
    try:
        tokens = torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{rule}; got {type(values).__name__}") from error
    if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise UsageError(f"{rule}; got {tokens.dtype} of shape {list(tokens.shape)}")
    if tokens.shape[1] > network.length:
        raise UsageError(
            f"{name} has rows of at most {network.length} tokens, the network's context; got {tokens.shape[1]}: "
            "shorten them"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= network.vocab_size:
        token = low if low < 0 else high
        raise UsageError(
            f"{name} has token ids from 0 to {network.vocab_size - 1}, the bundle's symbols; got {token}: "
            "encode it with the bundle's tokenizer"
        )
    return tokens.long()
