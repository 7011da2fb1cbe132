"""Functions of each row of logits, computed a part of the rows at a time.

A loss over the vocabulary makes several tensors as large as the logits. In parts that stay in the cache of a CPU they
cost less time, and on any device less memory: what is kept for the backward pass is the gradient alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.categorical import CHUNK_ELEMENTS

CACHE_ELEMENTS = 2**18  # float32 numbers in a part on a CPU: 1 MiB

RowFunction = Callable[..., Tensor]


def rows_at_a_time(num_columns: int, device: torch.device) -> int:
    """Rows of so many columns in a part, 1 or more."""
    return max(1, (CACHE_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS) // num_columns)


def by_rows(function: RowFunction, logits: Float[Tensor, "n v"], *columns: Tensor) -> Float[Tensor, " n"]:
    """``function(logits, *columns)`` of all rows; differentiable once, with respect to the logits.

    Args:
        function: makes a number of each row, which depends on that row alone; given some of the rows at a time.
        logits: what is differentiated.
        columns: tensors of n rows that belong to those of the logits.
    """
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return torch.cat([function(*part) for part in _parts(logits, *columns)])
    values: Tensor = _ByRows.apply(function, logits, *columns)
    return values


def _parts(logits: Tensor, *columns: Tensor) -> Any:
    size = rows_at_a_time(logits.shape[-1], logits.device)
    return zip(*(one.split(size) for one in (logits, *columns)), strict=True)


class _ByRows(torch.autograd.Function):
    """Forward with the gradient of each part, which the backward pass scales."""

    @staticmethod
    def forward(ctx: Any, function: RowFunction, logits: Tensor, *columns: Tensor) -> Tensor:
        values, gradient = [], torch.empty_like(logits)
        for (part, *own), out in zip(_parts(logits, *columns), _parts(gradient), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                value = function(part, *own)
                out[0].copy_(torch.autograd.grad(value.sum(), part)[0])
            values.append(value.detach())
        ctx.save_for_backward(gradient)
        ctx.num_columns = len(columns)
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (None, gradient * grads[0][:, None].to(gradient.dtype), *(None for _ in range(ctx.num_columns)))
