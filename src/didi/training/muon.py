"""Muon: momentum whose matrices are orthogonalised before each step (Jordan et al. 2024).

``torch.optim.Muon`` runs its Newton-Schulz iterations in bfloat16, which is ten times slower than float32 on a CPU
without bfloat16 units, and processes one matrix at a time. Here they run in ``Muon.iteration_dtype``, on stacks of
matrices of equal shape.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.95
NUM_ITERATIONS = 5
# Coefficients of an odd polynomial of degree 5 whose iteration moves singular values to about 1:
# https://kellerjordan.github.io/posts/muon/
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalised(matrices: Float[Tensor, "n i j"]) -> Float[Tensor, "n i j"]:
    """The matrices with singular values of about 1 (0.7 to 1.2), by Newton-Schulz iterations; zeros stay zero."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.AdamW):
    """Muon with Nesterov momentum for the groups with ``is_muon``, AdamW for the others.

    A Muon step is scaled to the root mean square of an AdamW step (0.2), Liu et al. 2025,
    https://arxiv.org/abs/2502.16982; weight decay is decoupled as in AdamW. Parameters of the groups with ``is_muon``
    must have two axes.

    As in the fused AdamW, the step changes nothing if the attribute ``found_inf``, a 0-dim tensor, is 1.

    Attributes:
        iteration_dtype: dtype of the Newton-Schulz iterations; momentum and weights keep the dtype of the parameters.
    """

    found_inf: Tensor | None = None
    iteration_dtype: torch.dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter with a gradient; clears the gradients of the groups with ``is_muon``."""
        for group in self.param_groups:
            if group.get("is_muon"):
                self._muon_step(group)
        super().step(closure)  # skips parameters without a gradient

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        is_taken = 1.0 if self.found_inf is None else 1 - self.found_inf
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:  # AdamW's names, which ``load_state_dict`` needs
                    state.update(step=torch.zeros_like(parameter[0, 0]), exp_avg=torch.zeros_like(parameter))
                gradient = parameter.grad if self.found_inf is None else parameter.grad.where(is_taken > 0, 0.0)
                state["step"] += is_taken
                state["exp_avg"].lerp_(gradient, (1 - MOMENTUM) * is_taken)
                direction = gradient.lerp(state["exp_avg"], MOMENTUM)
                by_shape.setdefault(tuple(parameter.shape), []).append((parameter, direction))
                parameter.grad = None
        for shape, members in by_shape.items():
            scale = group["lr"] * 0.2 * math.sqrt(max(shape))
            directions = torch.stack([direction for _, direction in members])
            steps = orthogonalised(directions.to(self.iteration_dtype)).to(directions.dtype) * is_taken
            for (parameter, _), step in zip(members, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"] * is_taken).sub_(step, alpha=scale)
