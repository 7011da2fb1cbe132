"""Distillation by DiDi-Instruct: one step of Algorithm 1."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.data.source import Source
from didi.diffusion.absorbing import Absorbing, corrupt
from didi.diffusion.categorical import divergence, entropy
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import TimeDensity, time_weight
from didi.errors import UsageError
from didi.models.adapters import adapt, copy_sharing_frozen, merged
from didi.models.bundle import Bundle
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.models.dit import DiT
from didi.models.nelbo import nats_per_token
from didi.objectives.didi import (
    Advantages,
    advantages,
    discriminator_loss,
    log_density_ratio,
    policy_loss,
    second_move_score,
    unsmooth,
)
from didi.training.checkpoint import weights_digest
from didi.training.config import DistillConfig
from didi.training.distributed import (
    Synchronised,
    check_divides,
    full_state,
    load_full_state,
    shard,
    trained_state,
    unsharded,
)
from didi.training.loop import Metrics, autocast_dtype
from didi.training.optim import averaged, averaged_network, learning_rate, make_optimizer, update
from didi.training.real_source import real_sampler
from didi.training.rollout import Rollout, first_law, law_at_masks, rollout, states_before_a_move
from didi.world import world


class Distillation:
    """A student and its discriminator in training; a ``loop.Job``.

    Steps are counted with the discriminator's warm-up first, so that a resumed run finds its place in either phase.

    Args:
        config: the resolved recipe.
        source: corpus rows for the real side and for validation.
        teacher: a bundle with the teacher; student and discriminator start as copies of it.
        device: where the networks live.
        folder: the run's folder, where a teacher pool is kept.
    """

    def __init__(
        self, config: DistillConfig, source: Source, teacher: Bundle, device: torch.device, folder: Path
    ) -> None:
        self.config, self.source, self.device = config, source, device
        self.process, self.schedule, self.tokenizer = _masked(teacher), teacher.process.schedule, teacher.tokenizer
        self.teacher = teacher.denoiser("teacher" if teacher.teacher is not None else None).to(device).eval()
        self.teacher.requires_grad_(False)
        self._teacher_digest = weights_digest(self.teacher)
        _check_fit(config, self.teacher.length, self.teacher.vocab_size, source)
        check_divides(config.loop.batch_size)
        self.world = world()
        torch.manual_seed(derive_seed(config.seed, "discriminator-head"))
        num_blocks, rank = config.discriminator.trainable_blocks, config.lora_rank
        self.discriminator = Discriminator.from_denoiser(
            self.teacher,
            output=config.discriminator.output,
            is_time_conditioned=config.discriminator.is_time_conditioned,
            shares_trunk=rank is not None,
        ).to(device)
        if rank is None:
            self.discriminator.train_last_blocks(num_blocks)
            self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        else:
            self.student = copy_sharing_frozen(self.teacher)
            torch.manual_seed(derive_seed(config.seed, "adapters"))
            adapt(self.discriminator, rank, num_blocks)
            adapt(self.student, rank)
        self.average = averaged(self.student, config.loop.ema_decay, is_ramped=config.loop.ema_ramp)
        for trained in (self.student, self.discriminator):
            trained.keeps_activations = not config.loop.activation_checkpointing
        if config.loop.fsdp:
            self.teacher = copy.deepcopy(self.teacher)  # the caller's stays whole
            for trained in (self.student, self.discriminator):
                shard(trained)
            for read in (self.average.module, self.teacher):
                shard(read, is_trained=False)
        self._student_passes = Synchronised(self.student)
        self._discriminator_passes = Synchronised(self.discriminator)
        self.student_optimizer = make_optimizer(self.student, config.student_optimizer)
        self.discriminator_optimizer = make_optimizer(self.discriminator, config.discriminator_optimizer)
        self.warmup_steps = config.discriminator.warmup_steps
        self._warmup_objective = replace(config.objective, moves=config.discriminator.warmup_moves)
        self.last_student_step = self.warmup_steps + config.loop.steps
        self.num_steps = self.last_student_step + config.discriminator.guidance_steps
        self.states_per_step = config.loop.batch_size * config.loop.accumulation
        self.completions_per_step = self.states_per_step * config.objective.completions
        self.tokens_per_step = self.completions_per_step * config.data.length
        self._autocast = autocast_dtype(config.loop.precision, device)
        frozen = Bundle(teacher=self.teacher, process=self.process, name=config.teacher)
        self._real = real_sampler(config, source, frozen, folder)
        self._teacher_first: Tensor | None = None

    # --------------------------------------------------------------------------------------------------------- #
    def step(self, step: int) -> Metrics:
        """One update of the discriminator and, between its warm-up and its lessons for guidance, one of the student."""
        if step >= self.last_student_step:
            return self._guidance_update(step)
        is_warmup = step < self.warmup_steps
        metrics: dict[str, Tensor | float] = {}
        for number in range(self.config.loop.accumulation):
            last = number + 1 == self.config.loop.accumulation
            passes = partial(rollout, self.student) if is_warmup else partial(self._student_passes, rollout)
            with torch.set_grad_enabled(not is_warmup), self._cast(), self._student_passes.until(last):
                batch = passes(
                    self.config.loop.batch_size,
                    self.config.data.length,
                    self._warmup_objective if is_warmup else self.config.objective,
                    self.process,
                    named_generator(self.config.seed, "rollout", step, number),
                    self.device,
                )
            _add(metrics, self._discriminator_update(batch, step, number, is_last=last))
            if not is_warmup:
                _add(metrics, self._student_update(batch, step, is_last=last))
        if not is_warmup:
            self.average.update_parameters(self.student)
        return metrics

    # --------------------------------------------------------------------------------------------------------- #

    def _discriminator_backward(
        self,
        fake_t: Int[Tensor, "b l"],
        real_t: Int[Tensor, "b l"],
        t: Float[Tensor, " b"],
        scale: float = 1.0,
        *,
        is_last: bool = True,
    ) -> Metrics:
        """Back-propagate ``scale`` times the loss of Eq. 8 for corrupted student and real rows, of this process."""
        states = torch.cat([fake_t, real_t])
        self.discriminator.train()
        with self._cast(), self._discriminator_passes.until(is_last):
            level = self.process.noise_level(self.discriminator, t.to(self.device).repeat(2))
            logits = self._discriminator_passes(Discriminator.__call__, states, level).float()
        fake_logits, real_logits = logits.chunk(2)
        fake_masks, real_masks = (states == self.teacher.mask_id).chunk(2)
        smoothing = self.config.discriminator.label_smoothing
        loss = discriminator_loss(fake_logits, real_logits, fake_masks, real_masks, label_smoothing=smoothing)
        (loss * scale).backward()
        is_right = torch.cat(
            [log_density_ratio(fake_logits, fake_masks) > 0, log_density_ratio(real_logits, real_masks) < 0]
        )
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": is_right.float().mean()}

    def _guidance_update(self, step: int) -> Metrics:
        """One update of the discriminator alone, on states of the finished student's sampler."""
        num_rows, num_moves = self.config.loop.batch_size, self.config.discriminator.guidance_nfe
        generator = named_generator(self.config.seed, "guidance", step)
        move = torch.randint(1, num_moves + 1, (num_rows,), generator=generator)  # the last one leaves no masks
        draws = torch.rand(2, num_rows, self.config.data.length, dtype=torch.float64, generator=generator)
        real = self._real(step, 0, 0, num_rows)
        uniforms = torch.rand(real.shape, dtype=torch.float64, generator=generator)
        move, real, uniforms = map(self.world.mine, (move, real, uniforms))
        draws = torch.stack([self.world.mine(one) for one in draws]).to(self.device)
        t = 1 - move.double() / num_moves
        with self._cast():
            student = cast(DiT, averaged_network(self.average))
            fake_t = states_before_a_move(student, move, num_moves, draws, self.process)
        real_t = corrupt(real, self.schedule.alpha(t), self.teacher.mask_id, uniforms).to(self.device)
        metrics = self._discriminator_backward(fake_t, real_t, t)
        config = self.config.discriminator_optimizer
        rate = learning_rate(config, step - self.last_student_step, self.config.discriminator.guidance_steps)
        norm = update(self.discriminator, self.discriminator_optimizer, config, rate)
        return {**metrics, "discriminator_gradient_norm": norm}

    def _discriminator_update(self, batch: Rollout, step: int, number: int, *, is_last: bool) -> Metrics:
        """Tell corrupted student samples from corrupted real ones, Eq. 8; both sides in one forward pass."""
        settings, objective = self.config.discriminator, self.config.objective
        num_updates = settings.steps_per_student_step
        mask_id = self.teacher.mask_id
        num_completions = settings.completions or objective.completions
        t = batch.t.repeat_interleave(num_completions)
        alpha = self.schedule.alpha(t).to(self.device)
        metrics: dict[str, Tensor | float] = {}
        for repeat in range(num_updates):
            generator = named_generator(self.config.seed, "discriminator", step, number, repeat)
            real = self._real(step, number, repeat, len(t) * self.world.size)
            uniforms = torch.rand(2, *real.shape, dtype=torch.float64, generator=generator)
            real = self.world.mine(real).to(self.device)
            uniforms = torch.stack([self.world.mine(one) for one in uniforms]).to(self.device)
            fake_t = (
                batch.z_t[:, :num_completions, 0].flatten(0, 1)
                if repeat == 0
                else corrupt(batch.x[:, :num_completions].flatten(0, 1), alpha, mask_id, uniforms[0])
            )
            _add(
                metrics,
                self._discriminator_backward(
                    fake_t,
                    corrupt(real, alpha, mask_id, uniforms[1]),
                    t,
                    1 / self.config.loop.accumulation,
                    is_last=is_last,
                ),
                1 / (num_updates * self.config.loop.accumulation),
            )
            if is_last:
                config = self.config.discriminator_optimizer
                rate = learning_rate(config, step, self.last_student_step)
                norm = update(self.discriminator, self.discriminator_optimizer, config, rate)
                _add(metrics, {"discriminator_gradient_norm": norm / num_updates})
        return metrics

    def _rewards(self, batch: Rollout) -> tuple[Float[Tensor, "s g c"], Float[Tensor, ""]]:
        """Log-ratio of each corruption in nats, Eq. 6, and the share of them that the clamp cut."""
        objective = self.config.objective
        states = batch.z_t.flatten(0, 2)
        t = batch.t.repeat_interleave(objective.completions * objective.corruptions)
        with self._cast():
            level = self.process.noise_level(self.discriminator, t.to(self.device))
            logits = log_ratio_logits(self.discriminator, states, level)
        if self.config.discriminator.unsmooth:
            logits = unsmooth(logits, self.config.discriminator.label_smoothing)
        rewards = log_density_ratio(logits, states == self.teacher.mask_id, reduction=objective.reward_reduction)
        if (bound := objective.reward_clamp) is None:
            return rewards.view(batch.z_t.shape[:3]), torch.zeros((), device=self.device)
        is_cut = (rewards.abs() > bound).float().mean()
        return rewards.clamp(-bound, bound).view(batch.z_t.shape[:3]), is_cut

    def _student_update(self, batch: Rollout, step: int, *, is_last: bool) -> Metrics:
        """Policy gradient of Eq. 5 with the advantage of Eq. 7 and the split score of Eq. 9, and the regularisers."""
        objective, mask_id = self.config.objective, self.teacher.mask_id
        rewards, clamp_fraction = self._rewards(batch)
        weight = time_weight(
            objective.weight, self.schedule, batch.t, low=objective.weight_low, high=objective.weight_high
        )
        if objective.importance_weighting:
            density = TimeDensity(objective.time_a, objective.time_b).density(batch.t)
            weight = weight * (1 / density).clamp(max=objective.importance_clip)
        first_score, second_score = (
            batch.first_score,
            second_move_score(
                batch.completion_log_probs,
                batch.z_tau == mask_id,
                batch.z_t == mask_id,
                revealed_only=objective.revealed_only,
            ),
        )
        if objective.pg_reduction == "token-mean":
            length = batch.x.shape[-1]
            first_score, second_score = first_score / length, second_score / length
        all_rewards = self.world.gathered(rewards)  # groups and their spread are those of the whole batch
        advantage = Advantages(
            *map(
                self.world.mine,
                advantages(
                    all_rewards,
                    grouping=objective.advantage,
                    group_size=objective.group_size,
                    normalise=objective.normalise_advantage,
                ),
            )
        )
        policy = policy_loss(first_score, second_score, advantage, weight.float().to(self.device)).mean()
        regulariser, figures = self._regulariser(batch)
        ((policy + regulariser) / self.config.loop.accumulation).backward()
        scale = 1 / self.config.loop.accumulation
        metrics: dict[str, Tensor | float] = {}
        _add(
            metrics,
            {
                "reward": all_rewards.mean(),
                "reward_std": all_rewards.std(),
                "clamp_fraction": clamp_fraction,
                **figures,
            },
            scale,
        )
        if is_last:
            config = self.config.student_optimizer
            rate = learning_rate(config, step - self.warmup_steps, self.config.loop.steps)
            norm = update(self.student, self.student_optimizer, config, rate)
            _add(metrics, {"student_gradient_norm": norm, "student_learning_rate": rate})
        return metrics

    def _regulariser(self, batch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Divergence from the teacher and entropy bonus, each the sum over both moves of its mean over positions."""
        objective = self.config.objective
        laws = [batch.first_log_probs]
        if objective.score_decomposition:
            laws.append(batch.second_log_probs)
        with torch.set_grad_enabled(bool(objective.entropy_weight)):  # without a bonus it is only logged
            entropies = [self._mean(entropy(law)) for law in laws]
        figures = {"entropy": entropies[-1].detach()}
        loss = -objective.entropy_weight * torch.stack(entropies).sum()
        if objective.divergence_weight:
            with torch.no_grad(), self._cast():
                if self._teacher_first is None:  # the frozen teacher's law at the all-mask state never changes
                    self._teacher_first = first_law(self.teacher, batch.x.shape[-1], self.process, self.device)
                teacher_laws = [self._teacher_first]
                if objective.score_decomposition:
                    teacher_laws.append(law_at_masks(self.teacher, batch.z_tau, batch.tau, self.process))
            divergences = [
                self._mean(divergence(objective.divergence, of_teacher, law))
                for of_teacher, law in zip(teacher_laws, laws, strict=True)
            ]
            figures["divergence"] = torch.stack(divergences).sum().detach()
            loss = loss + objective.divergence_weight * torch.stack(divergences).sum()
        return loss, figures

    def _mean(self, values: Tensor) -> Tensor:
        """This process's part of the mean over the values of all, of which the processes' mean is that mean."""
        num = self.world.mean(torch.tensor(float(values.numel()), device=self.device))
        return values.sum() / num.clamp(min=1 / self.world.size)

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None)

    def validate(self) -> dict[str, float]:
        """NELBO per token of the averaged student on held-out sequences, in nats."""
        rows = self.source.validation[: self.config.loop.validation_sequences]
        value = nats_per_token(
            averaged_network(self.average),
            self.process,
            rows,
            batch_size=self.config.loop.batch_size,
        )
        return {"validation_nelbo": value}

    def state_dict(self) -> dict[str, Any]:
        """Both trained networks, the average and both optimizers; what is frozen comes from the teacher's bundle."""
        state = {name: full_state(trained_state(getattr(self, name))) for name in self._STATE}
        return state | {"teacher": self._teacher_digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to a state of ``state_dict``.

        Raises:
            UsageError: it was made with other teacher weights.
        """
        if state["teacher"] != self._teacher_digest:
            raise UsageError(
                f"a run goes on with the teacher that it began with; the weights of {self.config.teacher!r} are others "
                "now: put them back, or begin again in another folder with --out"
            )
        for name in self._STATE:
            load_full_state(getattr(self, name), state[name])

    _STATE = ("student", "average", "discriminator", "student_optimizer", "discriminator_optimizer")

    def bundle(self) -> Bundle:
        """The averaged student, its teacher and the discriminator."""
        return Bundle(
            student=unsharded(merged(cast(DiT, averaged_network(self.average)))),
            teacher=unsharded(self.teacher),
            discriminator=unsharded(merged(self.discriminator.eval())),
            tokenizer=self.tokenizer,
            process=self.process,
        )


def _masked(teacher: Bundle) -> Absorbing:
    if not isinstance(teacher.process, Absorbing):
        raise UsageError(
            f"DiDi-Instruct distils masked diffusion; the process of {teacher.name} is {teacher.process.name}"
        )
    return teacher.process


def _add(metrics: dict[str, Tensor | float], new: Metrics, scale: float = 1.0) -> None:
    for name, value in new.items():
        metrics[name] = metrics.get(name, 0.0) + value * scale


def _check_fit(config: DistillConfig, length: int, vocab_size: int, source: Source) -> None:
    """Refuse a corpus that the teacher cannot read."""
    if config.data.length > length:
        raise UsageError(f"data.length is at most the teacher's context of {length} tokens; got {config.data.length}")
    if source.vocab_size != vocab_size:
        raise UsageError(
            f"corpus and teacher share one tokenizer; the corpus has {source.vocab_size} symbols, the teacher "
            f"{vocab_size}: give data.tokenizer the teacher bundle's tokenizer.json"
        )
