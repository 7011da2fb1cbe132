"""Layouts of the rows into which a stream of tokens is cut for training."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from didi.errors import UsageError

BlockLayout = Literal["stream", "bos-eos"]
"""``stream``: consecutive tokens. ``bos-eos``: the begin-of-text token, l - 2 consecutive tokens and the end-of-text
token, the rows of the public MDLM, Duo, SDTT and DiDi-Instruct checkpoints. GPT-2 has one token for both ends."""

BLOCK_LAYOUT = "block_layout"
"""Name of the layout in a bundle's provenance, and in the ``config.json`` of an exported network."""


def cut(stream: Int[np.ndarray, " t"], length: int, eos_id: int, layout: BlockLayout) -> Int[Tensor, "n l"]:
    """Rows of a stream of tokens; an incomplete row is dropped.

    Args:
        stream: Token ids of documents, each ended with ``eos_id``.
        length: Number of tokens l of a row; at least 1, with ``bos-eos`` at least 3.
        eos_id: Begin-of-text and end-of-text token.
        layout: Layout of the rows.

    Returns:
        Token ids, int64.

    Raises:
        UsageError: ``length`` is too small.
    """
    num_ends = 2 if layout == "bos-eos" else 0
    if length <= num_ends:
        raise UsageError(f"a row of layout {layout} has {num_ends + 1} tokens or more; got length {length}; raise it")
    inner = length - num_ends
    rows = stream[: len(stream) // inner * inner].reshape(-1, inner)
    if num_ends:
        rows = np.pad(rows, ((0, 0), (1, 1)), constant_values=eos_id)
    return torch.from_numpy(rows).long()


def block_layout_of(provenance: Mapping[str, Any]) -> BlockLayout:
    """The layout of the training rows of a bundle; ``stream`` if none is recorded.

    Raises:
        UsageError: The recorded layout is unknown.
    """
    return checked_layout(provenance.get(BLOCK_LAYOUT, "stream"))


def checked_layout(layout: Any) -> BlockLayout:
    """``layout``, if it is a ``BlockLayout``.

    Raises:
        UsageError: It is not.
    """
    if layout not in get_args(BlockLayout):
        raise UsageError(f"block_layout is one of {', '.join(get_args(BlockLayout))}; got {layout!r:.80}")
    return layout
