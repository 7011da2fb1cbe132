"""The gradients of one distillation step, computed again from pure functions of ``diffusion`` and ``objectives``.

Nothing here calls a method of the job. Only the weights after an optimizer step are taken from the observation;
``test_wiring_optimizers`` tests the optimizer steps.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from didi.data.source import Source
from didi.diffusion.absorbing import corrupt, token_log_probs
from didi.diffusion.categorical import divergence, entropy
from didi.diffusion.noise import derive_seed, named_generator
from didi.diffusion.schedule import nelbo_weight, sigma
from didi.methods.didi_settings import DistillConfig
from didi.methods.guidance_states import guidance_states
from didi.methods.rollout import Rollout, rollout
from didi.models.bundle import Bundle
from didi.objectives.didi import (
    advantages,
    discriminator_loss,
    log_density_ratio,
    policy_loss,
    second_move_score,
    unsmooth,
)
from didi.sampling.generate import generate

from .observed_step import CPU, Observed, Values, copied


@dataclass(frozen=True)
class Inputs:
    """Settings and inputs of a distillation."""

    config: DistillConfig
    source: Source
    teacher: Bundle


def rebuilt_gradients(inputs: Inputs, step: int, observed: Observed) -> list[tuple[str, Values]]:
    """Network and gradient of each update of ``step``, the only step that was observed, in order."""
    networks = copied(observed.before)
    student, discriminator = networks["student"], networks["discriminator"]
    config = inputs.config
    first_student_step = config.discriminator.warmup_steps
    is_guidance = step >= first_student_step + config.loop.steps
    if config.objective.budgets:
        num_moves = _drawn_budget(config, step)
        discriminator.trunk.budget = num_moves
        if config.objective.budget_conditioning:
            student.budget = networks["average"].budget = num_moves
    if is_guidance:
        _guidance_loss(inputs, step, networks["average"], discriminator).backward()
        return [("discriminator", _take_gradient(discriminator))]
    is_warmup = step < first_student_step
    expected = []
    for number in range(config.loop.accumulation):
        batch = rebuilt_rollout(inputs, step, student, number=number, is_warmup=is_warmup)
        is_last = number + 1 == config.loop.accumulation
        for repeat in range(config.discriminator.steps_per_student_step):
            fake_batch = batch
            if config.objective.reference_steps and not is_warmup:
                fake_batch = rebuilt_rollout(inputs, step, networks["teacher"], number=number, repeat=repeat + 1)
            elif repeat and config.discriminator.fresh_rollouts:
                fake_batch = rebuilt_rollout(inputs, step, student, number=number, repeat=repeat, is_warmup=is_warmup)
            loss = _discriminator_loss(inputs, step, discriminator, fake_batch, number, repeat)
            (loss / config.loop.accumulation).backward()
            if is_last:
                expected.append(("discriminator", _take_gradient(discriminator)))
                discriminator.load_state_dict(observed.weights_after("discriminator", repeat), strict=False)
        if not is_warmup:  # only the rewards of the last micro-batch are those of the updated discriminator
            loss = rebuilt_student_loss(inputs, batch, discriminator, networks["teacher"])
            (loss / config.loop.accumulation).backward()
    return expected if is_warmup else [*expected, ("student", _take_gradient(student))]


def _drawn_budget(config: DistillConfig, step: int) -> int:
    generator = named_generator(config.seed, "budget", step)
    return config.objective.budgets[torch.randint(len(config.objective.budgets), (), generator=generator)]


def rebuilt_rollout(
    inputs: Inputs, step: int, student: nn.Module, *, number: int = 0, repeat: int = 0, is_warmup: bool = False
):
    """Trajectories of one micro-batch."""
    config = inputs.config
    objective = config.objective
    if is_warmup and objective.trajectory != "whole-path":
        moves = config.discriminator.warmup_moves
        kind = "one-step" if objective.trajectory == "one-step" else "two-moves" if moves == 2 else "path"
        objective = replace(objective, trajectory=kind, moves=moves if kind == "path" else None)
    if objective.budgets:  # the student is conditioned on its number of moves already
        objective = replace(objective, moves=_drawn_budget(config, step), budgets=(), budget_conditioning=True)
    generator = named_generator(config.seed, "rollout", step, number, *([repeat] if repeat else []))
    shape = config.loop.batch_size, config.data.length
    return rollout(student, inputs.teacher.process, *shape, objective, generator, CPU)


def _take_gradient(network: nn.Module) -> Values:
    gradient = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return gradient


def _real_rows(inputs: Inputs, step: int, number: int, repeat: int, num_rows: int) -> Tensor:
    config, settings = inputs.config, inputs.config.discriminator
    options = {"length": config.data.length, "role": "teacher"}
    if settings.real_source == "corpus":
        num_copies = config.objective.group_size if config.objective.advantage == "rows" else 1
        draw = (step * config.loop.accumulation + number) * settings.steps_per_student_step + repeat
        return inputs.source.batch(draw, num_rows // num_copies).repeat_interleave(num_copies, 0)
    if settings.real_source == "teacher-pool":
        seed = derive_seed(config.seed, "pool")
        pool = generate(
            inputs.teacher, num_samples=settings.pool_size, nfe=settings.pool_nfe, seed=seed, **options
        ).tokens
        generator = named_generator(config.seed, "pool", step, number, repeat)
        return pool[torch.randint(len(pool), (num_rows,), generator=generator)]
    nfe = int(settings.real_source.removeprefix("teacher-steps="))
    seed = derive_seed(config.seed, "online", step, number, repeat)
    return generate(inputs.teacher, num_samples=num_rows, nfe=nfe, seed=seed, **options).tokens


def _loss_of_rows(inputs: Inputs, discriminator: nn.Module, fake_t: Tensor, real_t: Tensor, t: Tensor) -> Tensor:
    mask_id, settings = inputs.source.mask_id, inputs.config.discriminator
    level = sigma(inputs.teacher.process.schedule, t).float()
    logits = discriminator.train()(
        torch.cat([fake_t, real_t]), torch.cat([level, level]) if settings.is_time_conditioned else None
    )
    smoothing = settings.label_smoothing
    fake, real = logits[: len(t)], logits[len(t) :]
    return discriminator_loss(fake, real, fake_t == mask_id, real_t == mask_id, label_smoothing=smoothing)


def _discriminator_loss(
    inputs: Inputs, step: int, discriminator: nn.Module, batch: Rollout, number: int, repeat: int
) -> Tensor:
    """Eq. 8: first on the corruptions of the rollout, then on new corruptions of the same samples."""
    settings = inputs.config.discriminator
    num_completions = settings.completions or inputs.config.objective.completions
    samples = batch.x[:, :num_completions].flatten(0, 1)
    t = batch.t.repeat_interleave(num_completions)
    alpha = inputs.teacher.process.schedule.alpha(t)
    real = _real_rows(inputs, step, number, repeat, len(t))
    generator = named_generator(inputs.config.seed, "discriminator", step, number, repeat)
    shape = (2, *real.shape, 2) if _is_uniform(inputs) else (2, *real.shape)
    of_fake, of_real = torch.rand(shape, dtype=torch.float64, generator=generator)
    fake_t = _corrupted(inputs, samples, alpha, of_fake)
    if repeat == 0 or settings.fresh_rollouts:  # with a reference every rollout is new
        fake_t = batch.z_t[:, :num_completions, 0].flatten(0, 1)
    return _loss_of_rows(inputs, discriminator, fake_t, _corrupted(inputs, real, alpha, of_real), t)


def _guidance_loss(inputs: Inputs, step: int, average: nn.Module, discriminator: nn.Module) -> Tensor:
    """Eq. 8 on states of the averaged student's ancestral sampler."""
    config, schedule = inputs.config, inputs.teacher.process.schedule
    shape, num_moves = (config.loop.batch_size, config.data.length), config.discriminator.guidance_nfe
    if config.objective.budgets:
        num_moves = _drawn_budget(config, step)
    generator = named_generator(config.seed, "guidance", step)
    move = torch.randint(1, num_moves + 1, shape[:1], generator=generator)
    process, is_uniform = inputs.teacher.process, _is_uniform(inputs)
    num_numbers = 1 + num_moves if is_uniform else 2 + num_moves * (config.objective.latent_codes > 0)
    draws = torch.rand(num_numbers, *shape, dtype=torch.float64, generator=generator)
    uniforms = torch.rand((*shape, 2) if is_uniform else shape, dtype=torch.float64, generator=generator)
    t = 1 - move.double() / num_moves
    fake_t = guidance_states(average, process, move, num_moves, draws)
    real = _real_rows(inputs, step, 0, 0, len(t))
    real_t = _corrupted(inputs, real, schedule.alpha(t), uniforms)
    return _loss_of_rows(inputs, discriminator, fake_t, real_t, t)


def _corrupted(inputs: Inputs, x: Tensor, alpha: Tensor, draws: Tensor) -> Tensor:
    """Corrupted sequences; uniform-state diffusion has two random numbers at each position."""
    if not _is_uniform(inputs):
        return corrupt(x, alpha, inputs.source.mask_id, draws)
    other = (draws[..., 1] * inputs.teacher.process.vocab_size).long()
    return torch.where(draws[..., 0] < 1 - alpha[:, None], other, x)


def _is_uniform(inputs: Inputs) -> bool:
    return inputs.teacher.process.name == "uniform"


def rebuilt_student_loss(inputs: Inputs, batch: Rollout, discriminator: nn.Module, teacher: nn.Module) -> Tensor:
    """Policy gradient of Eq. 5, 7 and 9 plus weighted divergence from the teacher minus weighted entropy."""
    objective = inputs.config.objective
    scores = [
        batch.first_score,
        second_move_score(
            batch.completion_log_probs,
            _is_predicted(inputs, batch.z_tau),
            _is_predicted(inputs, batch.z_t),
            revealed_only=objective.revealed_only,
        ),
    ]
    if objective.pg_reduction == "token-mean":
        scores = [score / inputs.config.data.length for score in scores]
    rewards = rebuilt_rewards(inputs, batch, discriminator)
    if objective.reference_steps:  # the first reference is the student before the test added noise: the teacher
        of_student = batch.first_score[:, None] + batch.completion_log_probs.sum(-1)
        rewards = rewards + (of_student.detach() - _path_log_probs(inputs, batch, teacher))[..., None]
    advantage = advantages(
        rewards,
        grouping=objective.advantage,
        group_size=objective.group_size,
        normalise=objective.normalise_advantage,
        clamp=objective.advantage_clamp,
    )
    policy = policy_loss(*scores, advantage, _time_weight(inputs, batch.t).float()).mean()
    return policy + _regulariser(inputs, batch, teacher)


def _is_predicted(inputs: Inputs, z: Tensor) -> Tensor:
    """Masked positions; all positions for a process without masks."""
    return z == inputs.source.mask_id if inputs.teacher.process.name == "absorbing" else torch.ones_like(z).bool()


@torch.no_grad()
def rebuilt_rewards(inputs: Inputs, batch: Rollout, discriminator: nn.Module) -> Tensor:
    """Log-ratio of each corruption, Eq. 6."""
    objective, settings = inputs.config.objective, inputs.config.discriminator
    states = batch.z_t.flatten(0, 2)
    t = batch.t.repeat_interleave(objective.completions * objective.corruptions)
    level = sigma(inputs.teacher.process.schedule, t).float() if settings.is_time_conditioned else None
    logits = discriminator.eval()(states, level)
    if settings.unsmooth:
        logits = unsmooth(logits, settings.label_smoothing)
    rewards = log_density_ratio(logits, states == inputs.source.mask_id, reduction=objective.reward_reduction)
    if (bound := objective.reward_clamp) is not None:
        rewards = rewards.clamp(-bound, bound)
    return rewards.view(batch.z_t.shape[:3])


@torch.no_grad()
def _path_log_probs(inputs: Inputs, batch: Rollout, network: nn.Module) -> Tensor:
    """Log-probability of the tokens of every whole path under ``network``, move by move."""
    if inputs.teacher.process.name == "uniform":
        return _uniform_path_log_probs(inputs, batch, network)
    num_moves, process, x = batch.num_moves, inputs.teacher.process, batch.x.flatten(0, 1)
    # Without latent codes, a record has one number for each position.
    (reveal,), total = batch.record.flatten(0, 1).unbind(1), torch.zeros(len(x))
    alphas = process.schedule.alpha(1 - torch.arange(num_moves + 1, dtype=torch.float64) / num_moves)
    for move in range(num_moves):
        is_masked, stays_masked = reveal < 1 - alphas[move], reveal < 1 - alphas[move + 1]
        z = torch.where(is_masked, process.mask_id, x)
        log_probs = token_log_probs(network(z, None), process.mask_id).gather(-1, x[..., None]).squeeze(-1)
        total += torch.where(is_masked & ~stays_masked, log_probs, 0.0).sum(-1)
    return total.view(batch.x.shape[:2])


def _uniform_path_log_probs(inputs: Inputs, batch: Rollout, network: nn.Module) -> Tensor:
    """Log-probability of every token of every move, from the posterior."""
    states, process = batch.record.flatten(0, 1), inputs.teacher.process
    times = 1 - torch.arange(batch.num_moves + 1, dtype=torch.float64) / batch.num_moves
    total = torch.zeros(len(states), dtype=torch.float64)
    for move in range(batch.num_moves):
        t, s = (time.expand(len(states)) for time in times[move : move + 2])
        log_probs = network(states[:, move], sigma(process.schedule, t).float()).double().log_softmax(-1)
        probs = process.posterior(states[:, move], log_probs, t, s)
        total += probs.gather(-1, states[:, move + 1, :, None]).log().sum((1, 2))
    return total.view(batch.x.shape[:2])


def _time_weight(inputs: Inputs, t: Tensor) -> Tensor:
    objective = inputs.config.objective
    omega = torch.ones_like(t) if objective.weight == "constant" else nelbo_weight(inputs.teacher.process.schedule, t)
    omega = omega.clamp(objective.weight_low, objective.weight_high)
    if not objective.importance_weighting:
        return omega
    density = torch.distributions.Beta(objective.time_a, objective.time_b).log_prob(t).exp()
    return omega * (1 / density).clamp(max=objective.importance_clip)


def _regulariser(inputs: Inputs, batch: Rollout, teacher: nn.Module) -> Tensor:
    """Sum over moves of the mean over their positions; 0 if paths start from different states."""
    objective = inputs.config.objective
    if inputs.teacher.process.name == "uniform" or objective.initial_mask_ratio < 1 or objective.latent_codes:
        return torch.zeros(())
    moves = [(torch.full_like(batch.z_tau[:1], inputs.source.mask_id), torch.ones_like(batch.tau[:1]))]
    all_log_probs = [batch.first_log_probs]
    if objective.trajectory not in ("one-step", "whole-path"):
        moves.append((batch.z_tau, batch.tau))
        all_log_probs.append(batch.second_log_probs)
    loss = torch.zeros(())
    for (z, t), log_probs in zip(moves, all_log_probs, strict=True):
        gap = divergence(objective.divergence, _teacher_log_probs(inputs, teacher, z, t), log_probs)
        loss = loss + objective.divergence_weight * gap.mean() - objective.entropy_weight * entropy(log_probs).mean()
    return loss


@torch.no_grad()
def _teacher_log_probs(inputs: Inputs, teacher: nn.Module, z: Tensor, t: Tensor) -> Tensor:
    """Log-probabilities at the masked positions of ``z``."""
    level = sigma(inputs.teacher.process.schedule, t).float() if teacher.config.is_time_conditioned else None
    return token_log_probs(teacher(z, level), inputs.source.mask_id)[z == inputs.source.mask_id]
