"""Settings of reward-guided sampling; a bundle may store them."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from didi.arguments import finite_number, one_of, set_fields, whole_number
from didi.objectives.didi import RewardReduction

Selection = Literal["sample", "best"]


@dataclass(frozen=True)
class Guidance:
    """Settings of RGAS. Defaults are those of the paper (App. F.3), except where other values measured better.

    A bundle may hold settings, which are then the defaults of its guided sampling.

    Attributes:
        guidance_scale: h of the last tilted move, in [-1e30, 1e30].
        initial_scale: h of the first tilted move, in [-1e30, 1e30]; h changes linearly from it to ``guidance_scale``. A
            single tilted move has ``initial_scale``.
        tilted_fraction: share of the moves that are tilted, from the first on; 0.5 in the paper. Re-ranking early moves
            gains far more than tilting them (docs/lab-notes.md).
        gradient_clamp: bound on each entry of the gradient before it is scaled.
        num_candidates: M candidates in each of the remaining moves.
        reduction: reduction of the discriminator's logits to one reward per candidate.
        rank_temperature: temperature of the softmax over candidates, in [1e-30, 1e30]; 1/h multiplies the rewards by h.
        select: ``sample`` from this softmax (Eq. 11), or take the ``best`` candidate (App. F.3).

    Raises:
        UsageError: a setting is not a finite number, is out of range, or is not one of the choices.
    """

    guidance_scale: float = 30.0
    initial_scale: float = 0.0
    tilted_fraction: float = 0.25
    gradient_clamp: float = 1.0
    num_candidates: int = 4
    reduction: RewardReduction = "sum"
    rank_temperature: float = 1.0
    select: Selection = "sample"

    def __post_init__(self) -> None:
        set_fields(
            self,
            guidance_scale=finite_number("guidance_scale", self.guidance_scale, low=-1e30, high=1e30),
            initial_scale=finite_number("initial_scale", self.initial_scale, low=-1e30, high=1e30),
            tilted_fraction=finite_number("tilted_fraction", self.tilted_fraction, low=0, high=1),
            gradient_clamp=finite_number("gradient_clamp", self.gradient_clamp, low=0),
            num_candidates=whole_number("num_candidates", self.num_candidates, low=1),
            reduction=one_of("reduction", self.reduction, get_args(RewardReduction)),
            rank_temperature=finite_number("rank_temperature", self.rank_temperature, low=1e-30, high=1e30),
            select=one_of("select", self.select, get_args(Selection)),
        )

    @classmethod
    def paper(cls) -> "Guidance":
        """App. F.3: the first half of the moves is tilted; the others take the best of 4 by the masked mean."""
        return cls(tilted_fraction=0.5, num_candidates=4, reduction="masked-mean", select="best")

    @classmethod
    def released(cls) -> "Guidance":
        """The authors' released code (rows 19 and 20 of ``docs/deviations.md``).

        The first half of the moves is tilted with h from 30 to 40. The others draw one of 4 candidates from the softmax
        of 40 times their rewards, the sum of logits.
        """
        scale = 40.0
        return cls(
            guidance_scale=scale,
            initial_scale=30.0,
            tilted_fraction=0.5,
            num_candidates=4,
            reduction="sum",
            rank_temperature=1 / scale,
            select="sample",
        )

    def scales(self, num_moves: int) -> list[float]:
        """The scale h of each tilted move, from ``initial_scale`` to ``guidance_scale``."""
        num_tilted = round(self.tilted_fraction * num_moves)
        return torch.linspace(self.initial_scale, self.guidance_scale, num_tilted).tolist()


DEFAULT = Guidance()
