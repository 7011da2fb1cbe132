r"""Self-Distillation Through Time (SDTT, Deschenaux and Gulcehre 2025), https://arxiv.org/abs/2410.21035.

A run has rounds of equal length. In round r, from 0, the step size of the teacher is dt = K^r / first_step (K is
``teacher_steps``), and the student learns to replace K steps of dt by one step of K dt. One training step:

1. Take a batch of clean sequences x0 and corrupt them, z_t ~ q(z_t | x0), at low-discrepancy times t.
2. The teacher of the round takes K ancestral steps of dt from z_t. The target of a masked position is the teacher's
   log p(x0 | .) at the step that reveals it, or at the last step if no step reveals it.
3. The student descends its divergence from the target at (z_t, t), averaged over all masked positions of the batch.

At the end of a round the weights of the student, not their average, become the teacher of the next round. Optimizer,
average and learning-rate schedule continue over the whole run, as in the public code (``reset_optimizer_on_growth`` and
``use_ema_on_growth`` are off there).

Departures from the public code, github.com/jdeschena/sdtt, are listed in ``docs/deviations.md``. The teacher's steps
are at t, t - dt, ...; the last step draws no tokens, since no target depends on them, and sequences without a target at
a step are left out of the teacher's pass.

Optimum of the student: for ``forward-kl`` the best prediction at (z_t, t) is the mean of the targets. This is close to
the teacher's prediction at (z_t, t): a revealed token changes a prediction, but the mean of the changed predictions
over that token hardly differs from the prediction before. For ``kl`` it is the normalised geometric mean, which is more
concentrated. ``evaluation.exact.sdtt`` computes both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing, is_masked_at
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import low_discrepancy_times
from didi.errors import UsageError
from didi.methods.base import Inputs, Metrics, Update
from didi.methods.distillation import Distillation
from didi.methods.frozen_copy import FrozenCopy
from didi.methods.settings import DistillationConfig, OptimizerConfig, check_at_least
from didi.methods.student_process import MASKED
from didi.models.bundle import Bundle
from didi.models.denoiser import Denoiser
from didi.models.networks import DenoiserNetwork
from didi.objectives.sdtt import Loss, distillation_loss, step_size, step_times, target_steps
from didi.process_group import process_group, to_device


@dataclass(frozen=True)
class SdttConfig(DistillationConfig):
    """Self-Distillation Through Time; ``loop.steps`` counts the updates of all rounds.

    "The public code" is github.com/jdeschena/sdtt.
    """

    rounds: int = 7
    """Number of rounds, of equal length; after each round the student becomes the teacher. 7 in the paper."""
    first_step: int = 1024
    """Number of teacher steps from t = 1 to t = 0 in the first round, the inverse of the step size; 1024 in the paper.
    The final student is trained for ``first_step / teacher_steps^rounds`` moves."""
    teacher_steps: int = 2
    """Steps K of the teacher for each target, and the factor of the step size from round to round; 2 in the paper."""
    loss: Loss = "kl"
    """Divergence of the student from its target: ``kl``, KL(student || target), is the public default; ``forward-kl``,
    ``mse`` of log-probabilities, ``tv``."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=6e-5, decay="constant", weight_decay=0.0)
    )
    """Optimizer of the student, with one schedule for all rounds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "rounds")
        check_at_least(2, self, "teacher_steps")
        if self.loop.fsdp:
            raise UsageError("method sdtt cannot be combined with loop.fsdp; got both: turn loop.fsdp off")
        factor = self.teacher_steps**self.rounds
        if self.first_step < factor or self.first_step % factor:
            raise UsageError(
                f"first_step is a multiple of teacher_steps^rounds, here {factor}; got {self.first_step}: set it to "
                f"{max(1, round(self.first_step / factor)) * factor}, or change rounds"
            )

    @property
    def num_moves(self) -> int:
        """Number of moves that the final student is trained for."""
        return self.first_step // self.teacher_steps**self.rounds

    def round_of(self, step: int) -> int:
        """The round of a step, both from 0; rounds have equal length up to one step."""
        return step * self.rounds // self.loop.steps


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process.

    Attributes:
        z: corrupted sequences.
        times: times before each of the teacher's K steps; ``times[0]`` are the times of ``z``.
        is_target_step: for each of the K steps, whether its prediction is the target of a position; on the CPU.
        uniforms: uniform numbers for the tokens of all steps but the last.
        scale: factor of the sum of the losses.
    """

    z: Int[Tensor, "b l"]
    times: Float[Tensor, "k b"]
    is_target_step: Bool[Tensor, "k b l"]
    uniforms: Float[Tensor, "j b l"]
    scale: float


def log_probs_where(
    network: Denoiser, process: Process, z: Int[Tensor, "b l"], t: Float[Tensor, " b"], is_selected: Bool[Tensor, "b l"]
) -> Float[Tensor, "n v"]:
    """Log-probabilities of x0 at selected positions, in row-major order; rows without a position need no pass.

    Args:
        network: predicts clean tokens.
        process: process of the network.
        z: states.
        t: times of ``z``.
        is_selected: selected positions; on the CPU, so that the host does not wait for another device.
    """
    row, position = is_selected.nonzero(as_tuple=True)
    rows, row_index = row.unique_consecutive(return_inverse=True)
    rows, row_index, position = (to_device(index, z.device) for index in (rows, row_index, position))
    features = network.features(z[rows], process.noise_level(network, t[rows]))
    return process.log_probs(network.head(features[row_index, position]))


@torch.no_grad()
def teacher_targets(
    teacher: Denoiser,
    process: Process,
    z: Int[Tensor, "b l"],
    times: Float[Tensor, "k b"],
    is_target_step: Bool[Tensor, "k b l"],
    uniforms: Float[Tensor, "j b l"],
) -> Float[Tensor, "n v"]:
    """Target log-probabilities at all masked positions of ``z``, in row-major order.

    Args:
        teacher: teacher of the round.
        process: masked diffusion.
        z: states at ``times[0]``.
        times: times before each of the K steps.
        is_target_step: from ``objectives.sdtt.target_steps``; on the CPU.
        uniforms: numbers in [0, 1) for the tokens of all steps but the last.
    """
    rank = is_target_step.any(0).flatten().cumsum(0) - 1  # index of a position among the masked positions
    targets, ranks = [], []
    for step, is_revealed in enumerate(is_target_step):
        if not bool(is_revealed.any()):
            continue
        log_probs = log_probs_where(teacher, process, z, times[step], is_revealed)
        targets.append(log_probs)
        ranks.append(rank[is_revealed.flatten()])
        if step + 1 < len(is_target_step):
            mask = to_device(is_revealed, z.device)
            z = z.masked_scatter(mask, sample_categorical(log_probs, uniforms[step][mask]))
    if not targets:
        return torch.empty(0, teacher.vocab_size, device=z.device)
    return torch.cat(targets)[to_device(torch.cat(ranks).argsort(), z.device)]


class Sdtt(Distillation):
    """See ``methods.base.Method``."""

    name: ClassVar[str] = "sdtt"
    settings_type = SdttConfig
    processes = MASKED

    def __init__(self, settings: SdttConfig, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        student = self.copy_of_teacher()
        self.trained = {"student": student}
        self._round_teacher = FrozenCopy(student, "method sdtt")
        self.frozen["round_teacher"] = self._round_teacher.network
        self.optimizers = {"student": settings.optimizer}

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """Corrupted sequences, and the step at which the teacher reveals each position.

        All random numbers are drawn for the whole step and divided among micro-batches and processes.
        """
        settings, process, device = self.settings, cast(Absorbing, self.process), self.runtime.device
        x0 = self.source.batch(step, self.sequences_per_step)
        generator = named_generator(settings.seed, "sdtt", step)
        t = low_discrepancy_times(len(x0), generator)
        draws = torch.rand(settings.teacher_steps, *x0.shape, dtype=torch.float64, generator=generator)
        dt = step_size(settings.round_of(step), settings.first_step, settings.teacher_steps)
        times = step_times(t, dt, settings.teacher_steps)
        # One number for each position determines whether it is masked at t and which step reveals it.
        alphas = process.schedule.alpha(times)
        is_target_step = target_steps(torch.stack([is_masked_at(draws[0], alpha) for alpha in alphas]))
        num_masked, num_parts = int(is_target_step.sum()), settings.loop.accumulation * process_group().size
        rows = torch.arange(len(x0)).split(settings.loop.batch_size)[micro_batch]
        local = process_group().local_rows(rows)
        z = process.corrupt(x0[local], t[local], draws[0][local, :, None])
        return Batch(
            z=to_device(z, device),
            times=to_device(times[:, local], device),
            is_target_step=is_target_step[:, local],
            uniforms=to_device(draws[1:, local], device),
            scale=num_parts / max(1, num_masked),
        )

    def updates(self, step: int) -> Sequence[Update]:
        """One update of the student; its learning-rate schedule extends over the whole run."""
        return [Update("student", self._loss, step, self.num_steps)]

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean divergence over the masked positions of the batch."""
        with torch.no_grad(), self.runtime.autocast():
            teacher = cast(DenoiserNetwork, self.frozen["round_teacher"])
            target = teacher_targets(teacher, self.process, batch.z, batch.times, batch.is_target_step, batch.uniforms)
        arguments = self.process, batch.z, batch.times[0], batch.is_target_step.any(0)
        student_log_probs = self.runtime.call("student", log_probs_where, *arguments)
        loss = distillation_loss(self.settings.loss, target, student_log_probs).sum() * batch.scale
        return loss, {"distillation_loss": loss.detach()}

    def end_step(self, step: int) -> None:
        """Copy the student into the teacher at the end of a round."""
        if step + 1 < self.num_steps and self.settings.round_of(step + 1) > self.settings.round_of(step):
            self._round_teacher.renew(self.student)

    def state_dict(self) -> dict[str, Any]:
        """Digest of the first teacher's weights, and the weights of the round's teacher."""
        return {**super().state_dict(), "round_teacher": self._round_teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""
        super().load_state_dict(state)
        self._round_teacher.load_state_dict(state.get("round_teacher", {}))

    def bundle(self) -> Bundle:
        """The averaged student and the first teacher."""
        bundle = super().bundle()
        bundle.intended_nfe = self.settings.num_moves
        return bundle
