"""Functions of each row of logits, computed for a few rows at a time.

A loss over the vocabulary allocates several tensors as large as the logits. Parts that fit in the cache of a CPU take
less time, and less memory on any device: for the backward pass only the gradient is kept.
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
    """Number of rows of ``num_columns`` columns in a part, 1 or more."""
    return max(1, (CACHE_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS) // num_columns)


def by_rows(function: RowFunction, logits: Float[Tensor, "n v"], *columns: Tensor) -> Float[Tensor, " n"]:
    """``function(logits, *columns)`` of all rows; differentiable once, with respect to the logits.

    Args:
        function: maps each row to a number that depends on that row alone; called with some of the rows at a time.
        logits: the argument that is differentiated.
        columns: further arguments, tensors of n rows.
    """
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return torch.cat([function(*part) for part in _parts(logits, *columns)])
    values: Tensor = _ByRows.apply(function, logits, *columns)
    return values


def _parts(logits: Tensor, *columns: Tensor) -> Any:
    size = rows_at_a_time(logits.shape[-1], logits.device)
    return zip(*(tensor.split(size) for tensor in (logits, *columns)), strict=True)


class _ByRows(torch.autograd.Function):
    """Computes the gradient of each part in the forward pass; the backward pass scales it."""

    @staticmethod
    def forward(ctx: Any, function: RowFunction, logits: Tensor, *columns: Tensor) -> Tensor:
        values, gradient = [], torch.empty_like(logits)
        for (part, *part_columns), (part_gradient,) in zip(_parts(logits, *columns), _parts(gradient), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                value = function(part, *part_columns)
                part_gradient.copy_(torch.autograd.grad(value.sum(), part)[0])
            values.append(value.detach())
        ctx.save_for_backward(gradient)
        ctx.num_columns = len(columns)
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (None, gradient * grads[0][:, None].to(gradient.dtype), *(None for _ in range(ctx.num_columns)))
