r"""Discrete consistency distillation of uniform-state teachers (Duo DCD, Sahoo et al. 2025, Sec. 4.2 and Algorithm 1).

https://arxiv.org/abs/2506.10892

The run is divided into rounds; the interval of round r = 0, 1, ... is dt = 2^r / num_intervals. One step:

1. Take a batch of clean sequences x0.
2. Draw low-discrepancy times t and the times s = t - dt before them.
3. Corrupt x0 to z_t and z_s, two states of one deterministic trajectory: both are made with the same draws.
4. Descend KL(student(z_t, t) || target(z_s, s)) of the clean token, Eq. 23, mean over all positions. The target network
   is the teacher in the first round; no gradient flows to it.
5. At the end of a round the target takes the weights of the student, not their moving average.

The trajectory of the paper is argmax(a x0 + sigma eps) of Gaussian diffusion for a fixed noise vector eps, Eq. 22. Let
m be the largest entry of eps at symbols other than x0. The argmax is x0 where a / sigma exceeds m minus the entry of
eps at x0, and otherwise the symbol of m, which does not depend on time and is uniform over the symbols other than x0.
So one number and one symbol determine the trajectory of a position. With a / sigma chosen so that the marginal is that
of uniform-state diffusion, the joint distribution of the states at s < t is

.. math:: P(z_t = x_0) = \alpha_t + (1 - \alpha_t)/K, \quad P(z_s = x_0, z_t = j) = (\alpha_s - \alpha_t)/K, \quad
    P(z_s = z_t = j) = (1 - \alpha_s)/K \quad (j \ne x_0),

which ``Uniform.corrupt`` has too when both times use the same draws. Neither latents of K numbers for each position nor
the integral of Eq. 10 have to be computed.

Departures from the paper and its public code (github.com/s-sahoo/duo):

- Times are those of the teacher's process, so that dt is the length of a move of its sampler. The paper spaces times
  evenly in the Gaussian signal rate, the code in the log noise-to-signal ratio.
- ``boundary`` chooses how an interval that exceeds [0, 1] is moved. The paper has s = max(t - dt, 0), the code
  t = min(u + dt, 1) for u in [1e-3, 1]. At s = 0 the state is x0 and the target is the prediction for it.
- The student is trained without dropout, row 7 of ``docs/deviations.md``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process, Uniform
from didi.diffusion.categorical import Divergence
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import low_discrepancy_times
from didi.errors import UsageError
from didi.methods.base import Inputs, Metrics, Update
from didi.methods.distillation import Distillation
from didi.methods.frozen_copy import FrozenCopy
from didi.methods.settings import DistillationConfig, LoopConfig, OptimizerConfig, check_at_least, check_fraction
from didi.models.bundle import Bundle
from didi.models.denoiser import Denoiser
from didi.models.networks import DenoiserNetwork
from didi.objectives.dcd import consistency_divergences
from didi.process_group import process_group, to_device

Boundary = Literal["data", "noise"]


@dataclass(frozen=True)
class DcdConfig(DistillationConfig):
    """Discrete consistency distillation; "Sec." refers to the paper, "the public code" is s-sahoo/duo."""

    rounds: int = 5
    """Rounds of equal length into which ``loop.steps`` are divided; 5 in Sec. 5.2. A run shortened by
    ``--max-steps`` or ``--max-minutes`` has the same number of rounds."""
    num_intervals: int = 512
    """Time intervals in the first round, halved in each further round; those of the last round are the moves that the
    student is trained for. 512 in Sec. 5.2, so that the fifth round has 32."""
    divergence: Divergence = "backward"
    """``backward``, KL(student || target), is Eq. 23 and the public code's default (kl-bwd); ``forward`` is
    KL(target || student), ``jeffreys`` their sum."""
    boundary: Boundary = "noise"
    """How an interval that exceeds [0, 1] is moved: ``data`` is s = max(t - dt, 0) as in Algorithm 1, ``noise`` is
    t = min(u + dt, 1), s = t - dt as in the public code."""
    t_min: float = 1e-3
    """Lower bound of the drawn times t, or u with boundary ``noise``, in [0, 1); 1e-3 in the public code."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=6e-5, warmup_steps=500, decay="constant", weight_decay=0.0
        )
    )
    """Optimizer of the student; rate and warm-up are those of scripts/distil_owt.sh in the public code."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=50_000, batch_size=128, ema_decay=0.999))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "rounds", "num_intervals")
        check_fraction(self, "t_min")
        if self.num_intervals % 2 ** (self.rounds - 1):
            raise UsageError(
                f"num_intervals is a multiple of 2^(rounds - 1), since every round after the first halves it; got "
                f"{self.num_intervals} and {self.rounds} rounds: set it to {2 ** (self.rounds - 1)} times the moves of "
                "the student"
            )
        if self.loop.fsdp:
            raise UsageError("method dcd cannot be combined with loop.fsdp; got both: turn loop.fsdp off")

    def round_of(self, step: int) -> int:
        """Round of a step, from 0."""
        return step * self.rounds // self.loop.steps

    def intervals_at(self, step: int) -> int:
        """Number of time intervals, 1 / dt, in the round of a step."""
        return self.num_intervals >> self.round_of(step)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process: two states on one trajectory for each sequence.

    Attributes:
        z_t: noisier states, inputs of the student.
        t: times of ``z_t``.
        z_s: less noisy states, inputs of the target network.
        s: times of ``z_s``.
    """

    z_t: Int[Tensor, "b l"]
    t: Float[Tensor, " b"]
    z_s: Int[Tensor, "b l"]
    s: Float[Tensor, " b"]


class Dcd(Distillation):
    """See ``methods.base.Method``; trains a student of uniform-state diffusion."""

    name: ClassVar[str] = "dcd"
    settings_type = DcdConfig
    processes = (Uniform.name,)
    settings: DcdConfig

    def __init__(self, settings: DcdConfig, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        student = self.copy_of_teacher()
        self._target = FrozenCopy(student, "method dcd")
        self.trained = {"student": student}
        self.frozen["target"] = self._target.network
        self.optimizers = {"student": settings.optimizer}

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """This process's states of the micro-batch; random numbers are drawn for the whole step and then split."""
        settings, device = self.settings, self.runtime.device
        generator = named_generator(settings.seed, "dcd", step)
        t = low_discrepancy_times(self.sequences_per_step, generator, t_min=settings.t_min)
        shape = (self.sequences_per_step, settings.data.length, self.process.draws_per_position)
        draws = torch.rand(shape, dtype=torch.float64, generator=generator)
        t, draws = (values.split(settings.loop.batch_size)[micro_batch] for values in (t, draws))
        t, s = interval(t, 1 / settings.intervals_at(step), settings.boundary)
        x0, t, s, draws = (
            to_device(process_group().local_rows(rows), device)
            for rows in (self.clean_rows(step, micro_batch), t, s, draws)
        )
        return Batch(self.process.corrupt(x0, t, draws), t, self.process.corrupt(x0, s, draws), s)

    def updates(self, step: int) -> Sequence[Update]:
        """One update of the student."""
        return [Update("student", self._loss, step, self.num_steps)]

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Eq. 23: the mean divergence over positions, in nats."""
        target = cast(DenoiserNetwork, self.frozen["target"])
        with torch.no_grad(), self.runtime.autocast():
            target_logits = _logits(target, self.process, batch.z_s, batch.s)
        student_logits = self.runtime.call("student", _logits, self.process, batch.z_t, batch.t)
        loss = consistency_divergences(student_logits, target_logits, self.settings.divergence).mean()
        return loss, {"consistency_loss": loss.detach()}

    def end_step(self, step: int) -> None:
        """Copy the student into the target network at the end of a round."""
        settings = self.settings
        if settings.round_of(step + 1) > settings.round_of(step) and step + 1 < self.num_steps:
            self._target.renew(self.student)

    def state_dict(self) -> dict[str, Any]:
        """Digest of the teacher's weights, and the target network."""
        return {**super().state_dict(), "target": self._target.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""
        super().load_state_dict(state)
        self._target.load_state_dict(state.get("target", {}))

    def bundle(self) -> Bundle:
        """The averaged student, intended for as many moves as the last round has intervals, and its teacher."""
        return replace(super().bundle(), intended_nfe=self.settings.intervals_at(self.num_steps - 1))


def interval(
    times: Float[Tensor, " b"], length: float, boundary: Boundary
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The noisier end t and the less noisy end s of an interval in [0, 1] for each time.

    Args:
        times: drawn times in [0, 1].
        length: length of the intervals, in (0, 1].
        boundary: see ``DcdConfig.boundary``. With ``data`` the drawn time is t, and s is at least 0; with ``noise`` it
            is s, and the interval is moved down if t would exceed 1.
    """
    if boundary == "data":
        return times, (times - length).clamp_min(0)
    end = (times + length).clamp_max(1)
    return end, end - length


def _logits(
    denoiser: Denoiser, process: Process, z: Int[Tensor, "b l"], t: Float[Tensor, " b"]
) -> Float[Tensor, "n v"]:
    """Logits of the clean token at every position, in row-major order."""
    return denoiser.head(denoiser.features(z, process.noise_level(denoiser, t)).flatten(0, 1))
