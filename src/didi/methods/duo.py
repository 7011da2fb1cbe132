r"""Pre-training of uniform-state diffusion with Duo's curriculum (Sahoo et al. 2025, Sec. 4.1).

https://arxiv.org/abs/2506.10892

A step of the curriculum:

1. Take a batch of clean sequences x0.
2. Draw low-discrepancy times t; the log noise-to-signal ratio gamma is linear in t.
3. Draw Gaussian latents w = a x0 + s eps of one-hot vectors. The state is z = argmax w; its signal rate alpha is an
   exact function of gamma (``diffusion.gaussian``).
4. The network reads softmax(w / tau) in place of z. Descend the loss of ``methods.elbo`` with alpha and its derivative.

Steps after the curriculum and all validations are those of ``methods.elbo``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion import Uniform
from didi.diffusion.canvas import Canvas
from didi.diffusion.gaussian import GaussianSchedule, gamma_at, relaxed
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.methods.base import Inputs, Metrics, Update
from didi.methods.elbo import Batch, Elbo, PretrainConfig
from didi.methods.settings import RunConfig, check_at_least, check_finite
from didi.process_group import process_group, to_device


@dataclass(frozen=True)
class CurriculumConfig:
    """Curriculum: steps in which the network reads relaxed tokens. "The public code" is s-sahoo/duo."""

    end: int = 500_000
    """Steps of the curriculum; 500,000 of 1 M in the public code's OpenWebText and LM1B runs, 0 for none. A run
    shortened by ``--max-steps`` or ``--max-minutes`` has a curriculum shortened in proportion."""
    start: int = 0
    """Step at which the temperature begins to change; 0 in the same runs."""
    log10_tau_start: float = -3.0
    """Decimal logarithm of the temperature tau up to ``start``; -3 in the same runs, -1 in the code's defaults."""
    log10_tau_end: float = -3.0
    """Decimal logarithm of tau at ``end``; it is linear between ``start`` and ``end``. -3 in the same runs, -2 in the
    code's defaults."""
    gamma_min: float | None = None
    """Log noise-to-signal ratio gamma at t = 0; -3.55 in the public OpenWebText run. None: the gamma of
    ``alpha_max``."""
    gamma_max: float | None = None
    """Gamma at t = 1; -1.85 in the public OpenWebText run. None: the gamma of ``alpha_min``."""
    alpha_max: float = 0.95
    """Signal rate at t = 0 if ``gamma_min`` is None; 0.945 in the public OpenWebText run."""
    alpha_min: float = 0.05
    """Signal rate at t = 1 if ``gamma_max`` is None; 0.049 in the public OpenWebText run."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(0, self, "end", "start")
        if self.start > self.end:
            raise UsageError(f"curriculum.start is at most curriculum.end; got {self.start} and {self.end}")
        if max(abs(self.log10_tau_start), abs(self.log10_tau_end)) > 30:
            raise UsageError(
                "curriculum.log10_tau_start and log10_tau_end lie in [-30, 30]; got "
                f"{self.log10_tau_start} and {self.log10_tau_end}"
            )
        if not 0 < self.alpha_min < self.alpha_max < 1:
            raise UsageError(
                "curriculum.alpha_min is less than curriculum.alpha_max, both in (0, 1); got "
                f"{self.alpha_min} and {self.alpha_max}"
            )
        if (self.gamma_min is None) != (self.gamma_max is None):
            raise UsageError(
                f"curriculum.gamma_min and gamma_max are set together; got {self.gamma_min} and {self.gamma_max}: set "
                "both, or neither to use alpha_max and alpha_min"
            )
        if self.gamma_min is not None and self.gamma_max is not None and not self.gamma_min < self.gamma_max:
            raise UsageError(
                f"curriculum.gamma_min is less than curriculum.gamma_max; got {self.gamma_min} and {self.gamma_max}"
            )

    def tau(self, step: int) -> float:
        """Temperature at a step before ``end``; its logarithm is constant up to ``start``, then linear."""
        progress = max(0.0, (step - self.start) / max(1, self.end - self.start))
        return float(10 ** (self.log10_tau_start + progress * (self.log10_tau_end - self.log10_tau_start)))

    def schedule(self, num_symbols: int) -> GaussianSchedule:
        """The noise schedule of the curriculum for ``num_symbols`` symbols."""
        if self.gamma_min is not None and self.gamma_max is not None:
            return GaussianSchedule(num_symbols, self.gamma_min, self.gamma_max)
        ends = gamma_at(torch.tensor([self.alpha_max, self.alpha_min], dtype=torch.float64), num_symbols)
        return GaussianSchedule(num_symbols, *ends.tolist())

    def scaled(self, factor: float) -> "CurriculumConfig":
        """The curriculum with ``start`` and ``end`` multiplied by ``factor``."""
        return replace(self, start=round(factor * self.start), end=round(factor * self.end))


@dataclass(frozen=True)
class DuoConfig(PretrainConfig):
    """Pre-training of a uniform-state teacher with Duo's curriculum, then by its NELBO."""

    process: str = "uniform"
    """Diffusion process; ``uniform``, the only one that is the argmax of a Gaussian diffusion."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.process != Uniform.name:
            raise UsageError(f"method duo needs process {Uniform.name}; got {self.process}: set process to it")

    def limited(self, max_steps: int) -> "DuoConfig":
        """See ``RunConfig.limited``; the curriculum is shortened in proportion."""
        curriculum = self.curriculum.scaled(max_steps / self.loop.steps)
        return replace(self, loop=super().limited(max_steps).loop, curriculum=curriculum)


class Duo(Elbo):
    """See ``methods.base.Method``; trains a teacher of uniform-state diffusion."""

    name: ClassVar[str] = "duo"
    settings_type: ClassVar[type[RunConfig]] = DuoConfig
    settings: DuoConfig
    process: Uniform

    def __init__(self, settings: DuoConfig, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        num_symbols = self.process.vocab_size
        self.schedule = settings.curriculum.schedule(num_symbols)
        self.relaxed_process = Uniform(num_symbols, self.schedule)

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """This process's clean sequences and times; with relaxed tokens during the curriculum."""
        curriculum = self.settings.curriculum
        if step >= curriculum.end:
            return super().prepare(step, micro_batch)
        rows, times, _ = self.drawn(step, micro_batch)
        device, local = self.runtime.device, process_group().local_slice(len(rows))
        weight = self.relaxed_process.loss_weight(times[local]).float()
        x0, t, weight = (to_device(values, device) for values in (rows[local], times[local], weight))
        canvas = Canvas.free(x0)
        gamma = self.schedule.gamma(t)
        z, soft = torch.empty_like(x0), torch.empty(*x0.shape, self.process.vocab_size, device=device)
        for row in range(len(x0)):  # the noise of a whole batch would double its memory
            index, noise = slice(row, row + 1), self._noise(step, micro_batch, local.start + row, soft[0].shape)
            z[index], soft[index] = relaxed(x0[index], gamma[index], noise[None], curriculum.tau(step))
        return Batch(self.relaxed_process, canvas, t, z, weight, z.numel(), soft)

    def _noise(self, step: int, micro_batch: int, row: int, shape: Sequence[int]) -> Float[Tensor, "l v"]:
        """Standard normal numbers for a row of a micro-batch, drawn on the device, which is faster than a copy."""
        generator = named_generator(self.settings.seed, "gaussian", step, micro_batch, row, device=self.runtime.device)
        return torch.randn(*shape, device=self.runtime.device, generator=generator)

    def updates(self, step: int) -> Sequence[Update]:
        """One update."""
        loss = self._curriculum if step < self.settings.curriculum.end else self._nelbo
        return [Update("network", loss, step, self.settings.loop.steps)]

    def _curriculum(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Loss on relaxed tokens; since its noise levels are a part of the schedule, it is not a bound."""
        loss, metrics = self._nelbo(batch)
        return loss, {"relaxed_nelbo": metrics["nelbo"]}
