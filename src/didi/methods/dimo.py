r"""Di[M]O (Zhu et al. 2025, https://arxiv.org/abs/2503.15457): a one-step student of a masked teacher; no data.

One step:

1. Draw initial states: some positions are [MASK], the others hold uniformly drawn tokens, and embeddings have Gaussian
   noise (``models.initial_state``). One pass of the student gives logits z, from which all tokens x are drawn.
2. Mask a random share of the positions of x. The auxiliary model descends the cross-entropy of x there. There are
   ``auxiliary_steps`` such updates, each with other samples of the student.
3. Mask the x of step 1 again, at new random positions. At these, the gradient of the divergence between the updated
   auxiliary model and the teacher with respect to the auxiliary model's logits is applied to z (``objectives.dimo``).

Student and auxiliary model are initialised with the teacher's weights. Departures from the paper and its public code,
github.com/yuanzhi-zhu/DiMO:

- The auxiliary model is updated before the student, on samples of the current student; the public code updates the
  student first and draws separate samples for the auxiliary model.
- The default has no label smoothing. The public code has 0.1, with which its teachers were trained too. With a teacher
  that was trained without smoothing, the optimum of the student would not be the teacher.
- Label smoothing gives no probability to [MASK], which no network predicts here; embeddings are trained; text models
  have no condition, and therefore no classifier-free guidance.
- The cross-entropy is a mean over all positions instead of the masked ones. This changes the scale of the gradient,
  which matters for ``clip_norm``. The student's loss is a sum over the masked positions of a sequence: its gradient had
  a norm of about 20 on ``exact`` and was therefore clipped to the norm 1.
- With ``loop.accumulation`` above 1 the auxiliary model is stepped with the last micro-batch; the student's loss on
  earlier micro-batches reads the auxiliary model before that step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import divergence, sample_categorical
from didi.diffusion.fixed_masks import mask_sizes, masks_of_size
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import time_at
from didi.errors import UsageError
from didi.methods.base import Inputs, Metrics, Update
from didi.methods.distillation import Distillation
from didi.methods.settings import DistillationConfig, OptimizerConfig, check_at_least, check_fraction, check_sharding
from didi.methods.student_process import MASKED
from didi.models.bundle import Bundle
from didi.models.denoiser import logits_at
from didi.models.initial_state import InitialState
from didi.models.nelbo import nats_per_token
from didi.models.networks import DenoiserNetwork
from didi.objectives.dimo import MaskRatios, auxiliary_losses, logit_gradient, mask_ratios, surrogate_loss
from didi.process_group import process_group


def dimo_optimizer(learning_rate: float) -> OptimizerConfig:
    """The published optimizer: Adam, constant rate after 100 steps of warm-up, gradients clipped to norm 1."""
    return OptimizerConfig(learning_rate=learning_rate, warmup_steps=100, decay="constant", weight_decay=0.0)


@dataclass(frozen=True)
class DimoConfig(DistillationConfig):
    """Distillation of a masked teacher into a one-step student by Di[M]O; "public" is github.com/yuanzhi-zhu/DiMO."""

    initial_state: InitialState = field(default_factory=lambda: InitialState(mask_ratio=0.5, noise_std=0.1))
    """What the student starts from, in training and sampling; public: 0.6 and 0.1 (ImageNet), 0.5 and 0.3 (text to
    image)."""
    mask_ratios: MaskRatios = "arccos"
    """Distribution of the share of masks in the states on which student and teacher are compared: ``arccos`` (public,
    ImageNet), or ``uniform``, as in the log-linear noise schedule."""
    reverse_weight: float = 0.0
    """Beta of the generalised Jeffreys divergence: 0 is the forward KL (public), 1 the reverse KL; the paper tries
    numbers outside [0, 1] too."""
    auxiliary_steps: int = 1
    """Updates of the auxiliary model for each update of the student; public: 1."""
    label_smoothing: float = 0.0
    """Label smoothing of the auxiliary model; public: 0.1, as for its teachers."""
    student_optimizer: OptimizerConfig = field(default_factory=lambda: dimo_optimizer(1e-5))
    auxiliary_optimizer: OptimizerConfig = field(default_factory=lambda: dimo_optimizer(1e-5))

    @property
    def starts_at_random(self) -> bool:
        """See ``DistillationConfig.starts_at_random``."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "auxiliary_steps")
        check_fraction(self, "label_smoothing")
        check_sharding(self.loop, self.student_optimizer, self.auxiliary_optimizer)
        if self.loop.accumulation > 1 and self.auxiliary_steps > 1:
            raise UsageError(
                "auxiliary_steps is 1 where loop.accumulation is more than 1: several updates of the auxiliary model "
                f"cannot share accumulated batches; got {self.auxiliary_steps} and {self.loop.accumulation}"
            )


@dataclass(frozen=True)
class Batch:
    """Samples of the student, this process's share of a micro-batch.

    Attributes:
        step: step of the run.
        micro_batch: number of the micro-batch within the step.
        logits: logits of the student at its initial states, with its gradient.
        x: tokens drawn from ``logits``.
    """

    step: int
    micro_batch: int
    logits: Float[Tensor, "b l v"]
    x: Int[Tensor, "b l"]


@dataclass(frozen=True)
class Remasked:
    """Samples of the student after masking.

    Attributes:
        z: masked samples.
        is_masked: masked positions of ``z``.
        t: times at which the noise schedule has the same share of masks.
    """

    z: Int[Tensor, "b l"]
    is_masked: Bool[Tensor, "b l"]
    t: Float[Tensor, " b"]


class Dimo(Distillation):
    """See ``methods.base.Method``."""

    name: ClassVar[str] = "dimo"
    settings_type = DimoConfig
    processes = MASKED

    def __init__(self, settings: DimoConfig, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        self.trained = {"student": self.copy_of_teacher(), "auxiliary": self.copy_of_teacher()}
        self.optimizers = {"student": settings.student_optimizer, "auxiliary": settings.auxiliary_optimizer}

    @property
    def auxiliary(self) -> DenoiserNetwork:
        """The model that is trained on the student's samples."""
        return cast(DenoiserNetwork, self.trained["auxiliary"])

    @property
    def mask_id(self) -> int:
        """Index of [MASK]."""
        return cast(Absorbing, self.process).mask_id

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """Samples of the student, with its gradient."""
        logits, x = self._samples(step, micro_batch, 0)
        return Batch(step, micro_batch, logits, x)

    def _samples(self, step: int, micro_batch: int, repeat: int) -> tuple[Float[Tensor, "b l v"], Int[Tensor, "b l"]]:
        """Logits of the student at initial states, with gradient if ``repeat`` is 0, and tokens drawn from them."""
        settings, local_rows, device = self.settings, process_group().local_rows, self.runtime.device
        generator = named_generator(settings.seed, "initial-state", step, micro_batch, repeat)
        shape, state = (settings.loop.batch_size, settings.data.length), settings.initial_state
        canvas = Canvas.blank(*shape)
        uniforms = torch.rand(*shape, 3, dtype=torch.float64, generator=generator)
        tokens = local_rows(state.tokens(canvas, uniforms[..., :2], self.mask_id, self.student.vocab_size)).to(device)
        draws = local_rows(uniforms[..., 2]).to(device)
        normals = None
        if state.noise_std:
            normals = local_rows(torch.randn(*shape, self.student.hidden_size, generator=generator)).to(device)
        level = self.process.noise_level(self.student, torch.ones(len(tokens), dtype=torch.float64, device=device))
        arguments = state, tokens, normals, level
        if repeat == 0:
            logits = self.runtime.call("student", _initial_logits, *arguments)
        else:
            with torch.no_grad(), self.runtime.autocast():
                logits = _initial_logits(self.student, *arguments)
        with torch.no_grad():
            log_probs = self.process.log_probs(logits.flatten(0, 1))
            return logits, sample_categorical(log_probs, draws.flatten()).view_as(tokens)

    def updates(self, step: int) -> Sequence[Update]:
        """The auxiliary model's updates, then the student's."""
        auxiliary_updates = [
            Update("auxiliary", partial(self._auxiliary_loss, repeat), step, self.num_steps)
            for repeat in range(self.settings.auxiliary_steps)
        ]
        return [*auxiliary_updates, Update("student", self._student_loss, step, self.num_steps)]

    def _remasked(self, x: Int[Tensor, "b l"], name: str, *numbers: int) -> Remasked:
        """Mask samples ``x`` at random; ``name`` and ``numbers`` seed the generator."""
        generator = named_generator(self.settings.seed, name, *numbers)
        shape = self.settings.loop.batch_size, x.shape[1]
        ratio = mask_ratios(self.settings.mask_ratios, torch.rand(shape[0], dtype=torch.float64, generator=generator))
        uniforms, is_free = torch.rand(*shape, generator=generator), torch.ones(shape, dtype=torch.bool)
        masks = masks_of_size(mask_sizes(ratio, is_free.sum(1)), uniforms, is_free)
        is_masked = process_group().local_rows(masks).to(x.device)
        t = time_at(self.process.schedule, 1 - process_group().local_rows(ratio)).to(x.device)
        return Remasked(x.masked_fill(is_masked, self.mask_id), is_masked, t)

    def _auxiliary_loss(self, repeat: int, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the student's tokens at masked positions, per position, in nats."""
        x = batch.x if repeat == 0 else self._samples(batch.step, batch.micro_batch, repeat)[1]
        masked = self._remasked(x, "auxiliary", batch.step, batch.micro_batch, repeat)
        level = self.process.noise_level(self.auxiliary, masked.t)
        logits = self.runtime.call("auxiliary", logits_at, masked.z, masked.is_masked, level)
        losses = auxiliary_losses(self.process.log_probs(logits), x[masked.is_masked], self.settings.label_smoothing)
        return losses.sum() / x.numel(), {"auxiliary_loss": losses.detach().mean()}

    def _student_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Surrogate of the divergence, summed over masked positions and averaged over sequences."""
        masked = self._remasked(batch.x, "student", batch.step, batch.micro_batch)
        with torch.no_grad(), self.runtime.autocast():
            auxiliary_log_probs, teacher_log_probs = (
                self.process.log_probs(
                    logits_at(network, masked.z, masked.is_masked, self.process.noise_level(network, masked.t))
                )
                for network in (self.auxiliary, self.teacher)
            )
        gradient = logit_gradient(auxiliary_log_probs, teacher_log_probs, self.settings.reverse_weight)
        loss = surrogate_loss(batch.logits[masked.is_masked], gradient) / len(batch.x)
        metrics = {
            "forward_kl": divergence("forward", teacher_log_probs, auxiliary_log_probs).mean(),
            "reverse_kl": divergence("backward", teacher_log_probs, auxiliary_log_probs).mean(),
        }
        return loss, metrics

    def validate(self) -> dict[str, float]:
        """NELBO per token of the auxiliary model on held-out sequences, in nats.

        If the auxiliary model is optimal, this is an upper bound on the cross-entropy of the data relative to the
        distribution of the student's samples.
        """
        loop = self.settings.loop
        rows = self.source.validation[: loop.validation_sequences]
        nats = nats_per_token(self.auxiliary, self.process, rows, batch_size=loop.batch_size)
        return {"validation_auxiliary_nelbo": nats}

    def bundle(self) -> Bundle:
        """The averaged student with its initial state, and its teacher."""
        return replace(super().bundle(), initial_state=self.settings.initial_state, intended_nfe=1)


def _initial_logits(
    student: DenoiserNetwork,
    state: InitialState,
    tokens: Int[Tensor, "b l"],
    normals: Float[Tensor, "b l d"] | None,
    level: Float[Tensor, " b"] | None,
) -> Float[Tensor, "b l v"]:
    """Logits of the student at initial states; all positions are free."""
    return student.head(state.features(student, tokens, torch.ones_like(tokens, dtype=torch.bool), normals, level))
