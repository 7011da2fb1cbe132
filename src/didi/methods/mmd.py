r"""Policy gradient of the maximum mean discrepancy (MMD) between samples and corpus in features of the teacher.

Representation-Space MMD for Diffusion Language Models (Drobyshevskiy et al. 2026), https://arxiv.org/abs/2610.06648.

One step with ``corrupted-data`` trajectories, as in the publication:

1. Take a batch of clean sequences x0, draw low-discrepancy times t and corrupt, z_t ~ q(z_t | x0).
2. One pass of the student gives the distribution of x0 at the predicted positions of z_t. Draw ``completions`` samples
   of each state from it; other positions keep their tokens.
3. Compute features of samples and x0, both clean, after a block of the frozen teacher. A sequence is represented by
   the set of features of its predicted positions (``objectives.mmd``).
4. The cost of a group of samples is its discrepancy L from x0; the baseline is the mean cost of the other groups of the
   same state.
5. The student descends the mean of advantage times log-probability of the drawn tokens.

With ``whole-path`` (not in the publication) the student's ancestral sampler generates the samples of a batch, and every
move is scored (``student_moves``). All positions are compared. All samples of the batch have the same state, pure
noise, and are compared with ``corpus_rows`` sequences of the corpus for each sample. The gradient is that of the
discrepancy between the distribution of this sampler and the corpus. Neither kind of trajectory uses the teacher's
predictions.

Departures from the publication and its code (github.com/yandex-research/dlm-mmd), beside settings that name one:

- The bandwidth is a multiple of a median distance, not an absolute number.
- Advantages are divided by their root mean square, log-probabilities of a sample are summed over positions, and the
  gradient is clipped. The code divides by the number of predicted positions and does not clip; with Adam the scale of
  a loss affects the clipping only.
- Kernels include pairs of equal positions of two samples, which the code excludes.
- The student has no dropout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.categorical import sample_categorical
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import low_discrepancy_times
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.methods.base import Inputs, Metrics, Runtime, Update
from didi.methods.distillation import Distillation
from didi.methods.mmd_settings import MmdConfig
from didi.methods.sequence_features import Points, kernel_of, layers_of, pooled, sequence_features
from didi.methods.trajectories import Uniforms
from didi.methods.whole_path import MOVES
from didi.models.bundle import Bundle
from didi.models.denoiser import logits_at
from didi.models.networks import DenoiserNetwork
from didi.objectives.mmd import mean_of_pairs, median_distance, mmd_advantages
from didi.process_group import ProcessGroup, process_group

STD_EPSILON = 1e-12  # its root is above the rounding errors of float32 kernels, which equal samples would amplify
_MEDIAN_ROWS, _MEDIAN_POINTS = 256, 1024  # sequences, and the number of their feature vectors, for the median distance
_TOKENS_AT_ONCE = 4096  # tokens in one pass of the teacher at the start of a run


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this process.

    Attributes:
        step: step of the run.
        micro_batch: number of the micro-batch within the step.
        x: samples of each state.
        score: log-probability of each sample, with the student's gradient.
        real: sequences of the corpus that the samples of a state are compared with.
        is_scored: positions of each state that are compared; None for all.
    """

    step: int
    micro_batch: int
    x: Int[Tensor, "s g l"]
    score: Float[Tensor, "s g"]
    real: Int[Tensor, "s r l"]
    is_scored: Bool[Tensor, "s l"] | None = None


def completions(
    student: DenoiserNetwork,
    process: Process,
    z: Int[Tensor, "s l"],
    t: Float[Tensor, " s"],
    uniforms: Float[Tensor, "s l g"],
) -> tuple[Int[Tensor, "s g l"], Float[Tensor, "s g"]]:
    """Samples of the clean sequence given each state, and their log-probabilities in nats, with the gradient.

    Args:
        student: the few-step generator.
        process: process of the student.
        z: states; tokens at positions that are not predicted stay.
        t: times of ``z``, on its device.
        uniforms: numbers in [0, 1) for the g samples of each state, whose positions are independent; float64.
    """
    is_predicted = process.is_predicted(z)
    log_probs = process.log_probs(logits_at(student, z, is_predicted, process.noise_level(student, t)))
    tokens = sample_categorical(log_probs.detach(), uniforms[is_predicted])
    x = z[:, :, None].repeat(1, 1, uniforms.shape[-1])
    x[is_predicted] = tokens
    chosen = log_probs.gather(1, tokens)
    scores = torch.zeros(x.shape, dtype=chosen.dtype, device=x.device)
    scores = scores.index_put(is_predicted.nonzero(as_tuple=True), chosen)
    return x.transpose(1, 2).contiguous(), scores.sum(1)


def paths(
    student: DenoiserNetwork, process: Process, num_moves: int, length: int, draw: Uniforms
) -> tuple[Int[Tensor, "s l"], Float[Tensor, " s"]]:
    """Finished samples of the student's ancestral sampler, and the log-probability of each path in nats."""
    moves = MOVES[process.name].of(student, process, num_moves, draw.blank_canvas(length))
    branches = moves.branches(num_moves, 1, draw)  # the branch after the last move is the finished sample
    return branches.z, branches.first_score


class Mmd(Distillation):
    """See ``methods.base.Method``."""

    name: ClassVar[str] = "mmd"
    settings_type = MmdConfig
    processes = (Absorbing.name, Uniform.name)
    settings: MmdConfig

    def __init__(self, settings: MmdConfig, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        num_blocks = len(self.teacher.blocks)
        if max(layers_of(settings.objective, num_blocks)) > num_blocks:
            raise UsageError(
                f"objective.layers are numbers of teacher blocks, 1 to {num_blocks}; got "
                f"{list(settings.objective.layers)}"
            )
        self.trained = {"student": self.copy_of_teacher()}
        self.optimizers = {"student": settings.optimizer}
        self.tokens_per_step *= settings.objective.completions
        self._bank: Points = []

    def start(self, runtime: Runtime) -> None:
        """Compute the unit of the bandwidths, and the features of the bank."""
        super().start(runtime)
        objective, seed = self.settings.objective, self.settings.seed
        generator = named_generator(seed, "mmd-bandwidths")
        points = self._features(self.source.batch(0, _MEDIAN_ROWS), generator)
        distances = []
        for kind in points:
            rows = pooled(objective, kind[None], None)[0][0].flatten(0, 1)
            chosen = torch.randperm(len(rows), generator=generator)[:_MEDIAN_POINTS].to(rows.device)
            distances.append(median_distance(rows[chosen]))
        self._scales = torch.stack(distances)
        if objective.bank_size:
            self._bank = self._features(self.source.batch(0, objective.bank_size), named_generator(seed, "mmd-bank"))

    def _features(self, rows: Int[Tensor, "n l"], generator: torch.Generator) -> Points:
        """Features of sequences, computed by every process for all of them, a part at a time."""
        size = max(1, _TOKENS_AT_ONCE // rows.shape[1])
        parts = [
            self._local_features(part.to(self.runtime.device), generator, ProcessGroup()) for part in rows.split(size)
        ]
        return [torch.cat(features) for features in zip(*parts, strict=True)]

    def _local_features(self, rows: Int[Tensor, "n l"], generator: torch.Generator, processes: ProcessGroup) -> Points:
        """Features of this process's sequences, see ``sequence_features``."""
        with torch.no_grad(), self.runtime.autocast():
            return sequence_features(self.teacher, self.process, self.settings.objective, rows, generator, processes)

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """Samples of the student, with its gradient, and the sequences that they are compared with."""
        settings, device = self.settings, self.runtime.device
        generator = named_generator(settings.seed, "mmd", step, micro_batch)
        draw = Uniforms(settings.loop.batch_size, generator, device)
        if settings.objective.trajectory == "corrupted-data":
            return self._completed(step, micro_batch, draw)
        arguments = (self.process, settings.objective.moves, settings.data.length, draw)
        x, score = self.runtime.call("student", paths, *arguments)
        num_rows = settings.objective.corpus_rows
        rows = self.source.batch(step, self.sequences_per_step * num_rows)
        real = rows.split(settings.loop.batch_size * num_rows)[micro_batch]
        return Batch(step, micro_batch, x[None], score[None], process_group().local_rows(real).to(device)[None])

    def _completed(self, step: int, micro_batch: int, draw: Uniforms) -> Batch:
        """Corrupt sequences of the corpus, and let the student complete them."""
        local_rows, device, process = process_group().local_rows, self.runtime.device, self.process
        x0, t = self.clean_rows(step, micro_batch), low_discrepancy_times(draw.num_states, draw.generator)
        x0, t = local_rows(x0).to(device), local_rows(t).to(device)
        length, num = x0.shape[1], self.settings.objective.completions
        z = process.corrupt(x0, t, draw(length, process.draws_per_position))
        x, score = self.runtime.call("student", completions, process, z, t, draw(length, num))
        return Batch(step, micro_batch, x, score, x0[:, None], process.is_predicted(z))

    def updates(self, step: int) -> Sequence[Update]:
        """One update of the student."""
        return [Update("student", self._loss, step, self.num_steps)]

    def _kernels(self, batch: Batch) -> tuple[Float[Tensor, "s g g"], Float[Tensor, "s g r"]]:
        """Kernels of pairs of samples, and of samples and corpus; for whole paths, of the samples of all processes."""
        objective = self.settings.objective
        generator = named_generator(self.settings.seed, "mmd-features", batch.step, batch.micro_batch)
        samples = self._grouped_features(batch.x, generator)
        if objective.trajectory == "corrupted-data":
            real = self._grouped_features(batch.real, generator)
            sample_kernel = kernel_of(objective, samples, samples, self._scales, batch.is_scored)
            return sample_kernel, kernel_of(objective, samples, real, self._scales, batch.is_scored)
        all_samples = [process_group().all_gather(kind[0])[None] for kind in samples]
        if self._bank:
            num_rows = self.settings.loop.batch_size * objective.corpus_rows
            chosen = torch.randperm(objective.bank_size, generator=generator)[:num_rows].to(batch.x.device)
            real = [kind[chosen][None] for kind in self._bank]
        else:
            local_real = self._grouped_features(batch.real, generator)
            real = [process_group().all_gather(kind[0])[None] for kind in local_real]
        kernels = (kernel_of(objective, samples, other, self._scales)[0] for other in (all_samples, real))
        sample_kernel, cross_kernel = (process_group().all_gather(kernel)[None] for kernel in kernels)
        return sample_kernel, cross_kernel

    def _grouped_features(
        self, rows: Int[Tensor, "s n l"], generator: torch.Generator
    ) -> list[Float[Tensor, "s n l d"]]:
        """Features of the sequences of each state."""
        features = self._local_features(rows.flatten(0, 1), generator, process_group())
        return [kind.unflatten(0, rows.shape[:2]) for kind in features]

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Surrogate loss with the gradient of the discrepancy; the metric ``mmd`` omits the kernel of corpus pairs."""
        objective = self.settings.objective
        sample_kernel, cross_kernel = self._kernels(batch)
        advantage = mmd_advantages(
            sample_kernel, cross_kernel, advantage=objective.advantage, group_size=objective.group_size
        )
        mmd = mean_of_pairs(sample_kernel).mean() - 2 * cross_kernel.mean()
        is_path = objective.trajectory == "whole-path"
        if is_path:
            advantage = process_group().local_rows(advantage[0])[None]
        mean_square = process_group().mean(advantage.square().mean())
        if objective.normalise_advantage:
            advantage = advantage / (mean_square + STD_EPSILON).sqrt()
        loss = (advantage * batch.score).mean()
        metrics = {"mmd": mmd if is_path else process_group().mean(mmd), "advantage_std": mean_square.sqrt()}
        return loss, metrics

    def state_dict(self) -> dict[str, Any]:
        """Digest of the teacher's weights, and the unit of the bandwidths."""
        return {**super().state_dict(), "scales": self._scales}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""
        super().load_state_dict(state)
        self._scales = state["scales"].to(self.runtime.device)

    def bundle(self) -> Bundle:
        """The averaged student with its intended number of moves, and its teacher."""
        return replace(super().bundle(), intended_nfe=self.settings.objective.moves)
