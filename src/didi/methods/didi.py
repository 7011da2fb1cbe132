r"""DiDi-Instruct, Algorithm 1 of the paper; departures are listed in ``docs/deviations.md``.

A run has three phases: a warm-up that trains the discriminator only, the updates of the student, and guidance steps
(not in the paper), which train the discriminator only, on states of the finished student's ancestral sampler. A run
with ``loop.steps`` 0 has no updates of the student. One step with an update of the student:

1. Roll out the student: states z_tau, completions x and their corruptions z_t, with log-probabilities (``rollout``).
   With ``reference_steps`` the discriminator learns from samples of an earlier student instead (``reference``).
2. Corrupt real sequences to the same times t; the discriminator descends the cross-entropy of Eq. 8. There are
   ``steps_per_student_step`` such updates, each with other real rows and with other corruptions of the same samples
   or, with ``fresh_rollouts``, with other samples.
3. The reward of each z_t is its log-ratio under the updated discriminator, Eq. 6; Eq. 7 turns rewards into advantages.
4. The student descends omega(t) times advantage times score, Eq. 5 and 9, plus the divergence from the teacher and
   minus the entropy bonus at both moves, App. F.3.

If sequences have different lengths, such as proteins, the student's samples have the lengths of the real rows that they
are compared with; if a state has several completions, or rollouts are used again, only the distributions of lengths are
equal. Padding, begin and end symbols are never written, scored or averaged.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.uniform import Uniform
from didi.methods.base import Inputs, Metrics, Runtime, Update
from didi.methods.didi_networks import check_lengths, check_objective, initial_networks
from didi.methods.didi_settings import DistillConfig
from didi.methods.discriminator_step import corrupted, discriminator_step_loss
from didi.methods.distillation import Distillation
from didi.methods.guidance_states import guidance_states, num_guidance_uniforms
from didi.methods.real_source import real_sampler
from didi.methods.reference import Reference
from didi.methods.regularisation import TeacherLogProbs, regularisation
from didi.methods.rollout import Batch, Rollout, rollout
from didi.methods.validation import mean_log_ratio
from didi.models.bundle import Bundle
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.models.networks import DenoiserNetwork
from didi.objectives.didi import (
    Advantages,
    advantages,
    log_density_ratio,
    policy_loss,
    second_move_score,
    unsmooth,
)
from didi.process_group import process_group


class Didi(Distillation):
    """See ``methods.base.Method``; step numbers include the warm-up, so that a run can resume in any phase."""

    name: ClassVar[str] = "didi"
    settings_type = DistillConfig
    processes = (Absorbing.name, Uniform.name)
    supports_lengths = True

    def __init__(self, settings: DistillConfig, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        check_objective(settings, self.process)
        if self.source.has_lengths:
            check_lengths(settings)
        self._inputs = inputs
        student, discriminator = initial_networks(settings, self.teacher)
        self.trained = {"student": student, "discriminator": discriminator}
        self._reference = None
        if settings.objective.reference_steps:
            self._reference = Reference(student, self.process, settings.objective)
            self.frozen["reference"] = self._reference.network
        self.optimizers = {"student": settings.student_optimizer, "discriminator": settings.discriminator_optimizer}
        self.warmup_steps, loop = settings.discriminator.warmup_steps, settings.loop
        self._warmup_objective = settings.warmup_objective
        self.last_student_step = self.warmup_steps + loop.steps
        self.tokens_per_step *= settings.objective.completions
        self._teacher_log_probs = TeacherLogProbs(self.process)

    def start(self, runtime: Runtime) -> None:
        """Prepare the real samples, which may be drawn from the teacher."""
        super().start(runtime)
        frozen = Bundle(teacher=self.teacher, process=self.process, name=self.settings.teacher)
        self._real = real_sampler(self.settings, self.source, frozen, self._inputs.folder)

    @property
    def discriminator(self) -> Discriminator:
        """The estimator of the log-ratio."""
        return cast(Discriminator, self.trained["discriminator"])

    def prepare(self, step: int, micro_batch: int) -> Batch:
        """Roll out the student, with gradient unless the step is one of the warm-up; guidance steps need no rollout."""
        if step >= self.last_student_step:
            return Batch(step, micro_batch)
        is_warmup = step < self.warmup_steps
        return Batch(step, micro_batch, self._rollout(step, micro_batch, 0, has_gradient=not is_warmup))

    @property
    def _num_completions(self) -> int:
        """Completions of each state that the discriminator learns from."""
        return self.settings.discriminator.completions or self.settings.objective.completions

    def _real_sequences(self, step: int, micro_batch: int, update: int, num_rows: int) -> Canvas:
        """Real sequences of a discriminator update, for all processes."""
        return self.source.canvas(self._real(step, micro_batch, update, num_rows))

    def _canvas(self, step: int, micro_batch: int, update: int) -> Canvas | None:
        """Canvas of this process's student samples, with the lengths of real rows; None if all lengths are equal."""
        if not self.source.has_lengths:
            return None
        size = self.settings.loop.batch_size * self._num_completions
        real = self._real_sequences(step, micro_batch, update, size).rows(slice(None, None, self._num_completions))
        return real.rows(process_group().local_slice(len(real))).to(self.runtime.device)

    def _rollout(self, step: int, micro_batch: int, repeat: int, *, has_gradient: bool, update: int = 0) -> Rollout:
        """Trajectories of the student; without gradient, of the reference if there is one.

        ``repeat`` counts the rollouts of a micro-batch. Samples have the lengths of the real rows of the discriminator
        update number ``update``.
        """
        settings = self.settings
        objective = self._warmup_objective if step < self.warmup_steps else settings.objective
        objective = objective.at_step(settings.seed, step)
        generator = named_generator(settings.seed, "rollout", step, micro_batch, *([repeat] if repeat else []))
        sizes, device = (settings.loop.batch_size, settings.data.length), self.runtime.device
        arguments = (self.process, *sizes, objective, generator, device, self._canvas(step, micro_batch, update))
        if has_gradient:
            return self.runtime.call("student", rollout, *arguments)
        with torch.no_grad(), self.runtime.autocast():
            return rollout(self._reference.network if self._reference else self.student, *arguments)

    def updates(self, step: int) -> Sequence[Update]:
        """The discriminator's updates, then the student's, where the phase of the step has one."""
        settings = self.settings
        if step >= self.last_student_step:
            guidance_step, num_guidance_steps = step - self.last_student_step, settings.discriminator.guidance_steps
            return [Update("discriminator", self._guidance_loss, guidance_step, num_guidance_steps)]
        updates = [
            Update("discriminator", partial(self._discriminator_loss, repeat), step, self.last_student_step)
            for repeat in range(settings.discriminator.steps_per_student_step)
        ]
        if step < self.warmup_steps:
            return updates
        return [*updates, Update("student", self._student_loss, step - self.warmup_steps, settings.loop.steps)]

    def end_step(self, step: int) -> None:
        """Copy the student into the reference every ``reference_steps`` updates."""
        done = step + 1 - self.warmup_steps  # updates of the student so far
        if self._reference and 0 < done <= self.settings.loop.steps and not done % self._reference.num_steps:
            self._reference.renew(self.student)

    def _discriminator_loss(self, repeat: int, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of corrupted student samples against corrupted real ones, Eq. 8."""
        drawn, settings = cast(Rollout, batch.rollout), self.settings
        step, micro_batch, num_completions = batch.step, batch.micro_batch, self._num_completions
        has_reference = self._reference is not None and step >= self.warmup_steps  # in the warm-up both are equal
        is_fresh = has_reference or (repeat > 0 and settings.discriminator.fresh_rollouts)
        if is_fresh:
            drawn = self._rollout(step, micro_batch, repeat + has_reference, has_gradient=False, update=repeat)
        t = drawn.t.repeat_interleave(num_completions)
        generator = named_generator(settings.seed, "discriminator", step, micro_batch, repeat)
        real = self._real_sequences(step, micro_batch, repeat, len(t) * process_group().size)
        fake = drawn.canvas.repeat_interleave(num_completions)
        shape = (2, len(real), max(real.length, fake.length), self.process.draws_per_position)
        draws = torch.rand(shape, dtype=torch.float64, generator=generator)
        fake_draws, real_draws = (process_group().local_rows(part).to(self.runtime.device) for part in draws)
        real = real.rows(process_group().local_slice(len(real))).to(self.runtime.device)
        if repeat == 0 or is_fresh:
            fake = fake.with_tokens(drawn.z_t[:, :num_completions, 0].flatten(0, 1))
        else:
            fake = fake.with_tokens(drawn.x[:, :num_completions].flatten(0, 1))
            fake = corrupted(self.process, fake, t, fake_draws)
        return self._compare(fake, corrupted(self.process, real, t, real_draws), t, drawn.num_moves)

    def _guidance_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Like ``_discriminator_loss``, on states of the finished student's ancestral sampler."""
        settings, device = self.settings, self.runtime.device
        num_rows, budget = settings.loop.batch_size, settings.objective.at_step(settings.seed, batch.step).moves
        num_moves = budget if settings.objective.budgets and budget else settings.discriminator.guidance_nfe
        parts = [batch.step, batch.micro_batch] if batch.micro_batch else [batch.step]
        generator = named_generator(settings.seed, "guidance", *parts)
        move = torch.randint(1, num_moves + 1, (num_rows,), generator=generator)  # the last one: finished samples
        real = self._real_sequences(batch.step, batch.micro_batch, 0, num_rows)
        num_draws = num_guidance_uniforms(self.student, self.process, num_moves)
        draws = torch.rand(num_draws, num_rows, real.length, dtype=torch.float64, generator=generator)
        shape = (*real.tokens.shape, self.process.draws_per_position)
        uniforms = torch.rand(shape, dtype=torch.float64, generator=generator)
        move, uniforms = map(process_group().local_rows, (move, uniforms))
        real, uniforms = real.rows(process_group().local_slice(num_rows)).to(device), uniforms.to(device)
        draws = torch.stack([process_group().local_rows(numbers) for numbers in draws]).to(device)
        t = 1 - move.double() / num_moves
        with self.runtime.autocast():
            student = cast(DenoiserNetwork, self.runtime.averaged())
            if settings.objective.budgets:
                student = student.at_budget(num_moves)
            z_t = guidance_states(student, self.process, move, num_moves, draws, real)
        return self._compare(real.with_tokens(z_t), corrupted(self.process, real, t, uniforms), t, num_moves)

    def _compare(
        self, fake: Canvas, real: Canvas, t: Float[Tensor, " b"], num_moves: int | None = None
    ) -> tuple[Tensor, Metrics]:
        """See ``discriminator_step.discriminator_step_loss``."""
        smoothing = self.settings.discriminator.label_smoothing
        return discriminator_step_loss(
            self.runtime, self.discriminator, self.process, fake, real, t, num_moves, smoothing
        )

    def _rewards(self, drawn: Rollout) -> tuple[Float[Tensor, "s g c"], Metrics]:
        """Rewards in nats: log-ratios of Eq. 6, plus the log-ratio of student and reference; and metrics."""
        objective, settings = self.settings.objective, self.settings.discriminator
        states, device = drawn.z_t.flatten(0, 2), self.runtime.device
        t = drawn.t.repeat_interleave(objective.completions * objective.corruptions).to(device)
        with self.runtime.autocast():
            level = self.process.noise_level(self.discriminator, t)
            mask = drawn.corruption_canvas.attention_mask
            logits = log_ratio_logits(self.discriminator.at_budget(drawn.num_moves), states, level, mask)
            reference_ratio = self._reference.log_ratio(drawn) if self._reference else None
        if settings.unsmooth:
            logits = unsmooth(logits, settings.label_smoothing)
        is_masked, reduction = self.process.is_predicted(states), objective.reward_reduction
        rewards = log_density_ratio(logits, is_masked, reduction=reduction, attention_mask=mask)
        metrics = {"clamp_fraction": torch.zeros((), device=device)}
        if (bound := objective.reward_clamp) is not None:
            metrics["clamp_fraction"] = (rewards.abs() > bound).float().mean()
            rewards = rewards.clamp(-bound, bound)
        rewards = rewards.view(drawn.z_t.shape[:3])
        if reference_ratio is None:
            return rewards, metrics
        return rewards + reference_ratio[:, :, None], metrics | {"reference_log_ratio": reference_ratio.mean()}

    def _student_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Policy gradient of Eq. 5 with the advantage of Eq. 7 and the split score of Eq. 9, and the regularisers."""
        drawn, objective = cast(Rollout, batch.rollout), self.settings.objective
        rewards, metrics = self._rewards(drawn)
        is_masked_tau, is_masked_t = (self.process.is_predicted(z) for z in (drawn.z_tau, drawn.z_t))
        log_probs, revealed_only = drawn.completion_log_probs, objective.revealed_only
        first_score = drawn.first_score
        second_score = second_move_score(log_probs, is_masked_tau, is_masked_t, revealed_only=revealed_only)
        if objective.pg_reduction == "token-mean":
            num_free = drawn.canvas.num_free
            first_score, second_score = first_score / num_free, second_score / num_free[:, None, None]
        all_rewards = process_group().all_gather(rewards)  # groups extend over all processes
        all_advantages = advantages(
            all_rewards,
            grouping=objective.advantage,
            group_size=objective.group_size,
            normalise=objective.normalise_advantage,
            clamp=objective.advantage_clamp,
        )
        advantage = Advantages(*map(process_group().local_rows, all_advantages))
        weights = objective.time_weights(drawn.t, self.process.schedule).to(rewards.device)
        policy = policy_loss(first_score, second_score, advantage, weights).mean()
        with self.runtime.autocast():
            teacher_log_probs = self._teacher_log_probs(self.teacher, drawn) if objective.divergence_weight else []
        regulariser, regularised = regularisation(drawn.log_probs_of_moves, teacher_log_probs, objective)
        rewarded = {"reward": all_rewards.mean(), "reward_std": all_rewards.std()}
        return policy + regulariser, {**rewarded, **metrics, **regularised}

    def validate(self) -> dict[str, float]:
        """Mean log-ratio of a batch of held-out sequences; NELBO per token of the averaged student on all, in nats.

        A student that starts from random tokens or reads latent codes has no NELBO.
        """
        rows = self.source.validation[: self.settings.loop.validation_sequences][: self.settings.loop.batch_size]
        canvas = self.source.canvas(rows).trimmed()
        is_clean = self.settings.scores_finished_samples
        log_ratio = mean_log_ratio(self.discriminator, self.process, canvas, self.runtime, is_clean=is_clean)
        has_bound = not (self.settings.starts_at_random or self.settings.has_latent_codes)
        bound = super().validate() if has_bound else {}
        return {**bound, "validation_log_ratio": log_ratio}

    def state_dict(self) -> dict[str, Any]:
        """Digest of the teacher's weights, and the weights of the reference if there is one."""
        reference = {"reference": self._reference.state_dict()} if self._reference else {}
        return {**super().state_dict(), **reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See ``state_dict``."""
        super().load_state_dict(state)
        if self._reference:
            self._reference.load_state_dict(state.get("reference", {}))

    def bundle(self) -> Bundle:
        """The averaged student, its teacher and the discriminator."""
        objective = self.settings.objective
        num_moves = 1 if objective.trajectory == "one-step" else objective.moves
        if not self.settings.loop.steps:  # another run trained the student; guidance steps have these moves
            num_moves = self.settings.discriminator.guidance_nfe
        return replace(
            super().bundle(),
            discriminator=self.discriminator.eval(),
            intended_nfe=max(objective.budgets, default=num_moves),
            initial_state=objective.initial_state,
        )
