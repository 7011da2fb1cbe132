"""What a training run needs, from its recipe alone: parameters, bytes at the peak of a step, arithmetic.

The model (docs/scale.md). Weights and moments are there all the time. On top comes the largest phase of a step:

- *discriminator*: the student's graph waits while the discriminator's is built and differentiated; then its gradients
  and the optimizer's temporaries take the place of its graph;
- *objective*: the student's graph, and the laws of student and teacher at the masked positions while they are compared;
- *backward*: the student's graph shrinks block by block while its gradients grow;
- *update*: the student's gradients, and the optimizer's temporaries.

What a block keeps for its gradient, and needs while it runs, is not derived but counted on one real block. An
accelerator's caching allocator and its libraries' workspaces add to the bytes told here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from didi.methods.didi_settings import DistillConfig, ObjectiveConfig
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import LoopConfig, OptimizerConfig
from didi.models.adapters import adapt
from didi.models.discriminator import Discriminator, DiscriminatorConfig, num_parameters
from didi.models.dit import DiT, DiTConfig
from didi.training.live_memory import LiveMemory
from didi.training.optim import make_optimizer

FLOAT = 4.0
"""Bytes of a weight, a gradient, a moment, a log-probability."""


@dataclass(frozen=True)
class Budget:
    """What one step of a run needs.

    Attributes:
        parameters: numbers that are stored as weights of all networks, counted once where they are shared.
        trained: those that a gradient changes.
        weights: bytes of the weights on one device.
        moments: bytes of the optimizers' state on one device.
        transient: bytes at the peak of a step beyond those: gradients, graphs, laws, temporaries.
        flops: floating-point operations of one step of the student (of the teacher, in pre-training), all devices.
        total_flops: those of the whole run, warm-up included.
    """

    parameters: int
    trained: int
    weights: float
    moments: float
    transient: float
    flops: float
    total_flops: float

    @property
    def peak(self) -> float:
        """Bytes on one device at the peak of a step."""
        return self.weights + self.moments + self.transient


class BlockBytes(NamedTuple):
    """Bytes of a transformer block: ``kept`` for the backward pass, and beyond those while a pass runs.

    Each but ``kept_once``, which does not depend on the input, is for one token.
    """

    kept: float
    kept_once: float
    forward: float
    backward: float


@cache
def block_bytes(shape: DiTConfig, rank: int | None, dtype: torch.dtype | None) -> BlockBytes:
    """Count them on one block of that shape, trained as a whole or by adapters of a rank, on the CPU.

    Args:
        shape: of the network.
        rank: of the adapters; None is none.
        dtype: of autocast; None is float32.
    """
    network = DiT(replace(shape, vocab_size=2, mask_id=1, num_blocks=1))
    if rank is not None:
        adapt(network, rank)
    block, cond = network.blocks[0].train(), torch.zeros(1, shape.cond_dim)

    def count(num_tokens: int) -> tuple[int, int, int]:
        x = torch.zeros(1, num_tokens, shape.hidden_size, requires_grad=True)
        rotary = network.rotary_emb(num_tokens)
        with LiveMemory() as memory:
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                block(x, cond, rotary)
            forward = memory.peak
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                out = block(x, cond, rotary)
            kept = memory.now
            memory.restart()
            torch.autograd.grad(out, x, torch.ones_like(out))  # gradients of weights are counted apart
        return forward, kept, memory.peak - kept

    short, long = 32, 64
    at_short, at_long = count(short), count(long)
    forward, kept, backward = ((high - low) / (long - short) for low, high in zip(at_short, at_long, strict=True))
    return BlockBytes(kept, max(0.0, at_short[1] - kept * short), forward, max(0.0, backward))


def distill_budget(
    config: DistillConfig,
    shape: DiTConfig,
    *,
    num_processes: int = 1,
    dtype: torch.dtype | None = None,
    masked: int | None = None,
) -> Budget:
    """The budget of a distillation.

    Args:
        config: the recipe; with several processes, each has its share of ``loop.batch_size``.
        shape: of the teacher.
        num_processes: devices, each with a process.
        dtype: of autocast; None is float32.
        masked: masked positions of a process's intermediate states; None allows for nearly all draws.
    """
    shape, loop = replace(shape, dropout=0.0), config.loop
    student, discriminator = _networks(config, shape)
    num_states = loop.batch_size / num_processes
    if masked is None:
        masked = math.ceil(_likely_masked(config.objective, num_states) * config.data.length)
    parts = _Trained(student, config.student_optimizer), _Trained(discriminator, config.discriminator_optimizer)
    trained = sum(part.trained for part in parts)
    # The student and its average; the discriminator; the teacher, whose weights adapters share.
    numbers = num_parameters(student) + parts[0].trained
    if config.lora_rank is None:
        numbers += num_parameters(discriminator) + num_parameters(student)
    else:
        numbers += parts[1].trained
    shards = num_processes if loop.fsdp else 1
    flops, warmup_flops = (
        num_processes * loop.accumulation * one
        for one in _distill_flops(config, shape, student, discriminator, num_states, masked)
    )
    return Budget(
        parameters=numbers,
        trained=trained,
        weights=FLOAT * numbers / shards,
        moments=sum(part.moments for part in parts) / shards,
        transient=_distill_transient(config, shape, parts, num_states, masked, shards, dtype=dtype)
        + _gathered([student, student, discriminator], parts, loop, num_processes),
        flops=flops,
        total_flops=flops * loop.steps + warmup_flops * config.discriminator.warmup_steps,
    )


def pretrain_budget(
    config: PretrainConfig, shape: DiTConfig, *, num_processes: int = 1, dtype: torch.dtype | None = None
) -> Budget:
    """The budget of a teacher's pre-training; arguments as for ``distill_budget``."""
    loop, length = config.loop, config.data.length
    with torch.device("meta"):
        network = DiT(shape)
    part = _Trained(network, config.optimizer)
    shards = num_processes if loop.fsdp else 1
    tokens = loop.batch_size / num_processes * length
    masked = tokens / 2  # times are of low discrepancy: nearly always
    law, row = FLOAT * shape.vocab_size, FLOAT * shape.hidden_size
    block = block_bytes(shape, None, dtype)
    graph = _graph(block, shape.num_blocks, tokens, row, loop) + row * (2 * tokens + masked)
    phases = {
        "objective": graph + 3 * law * masked,
        "backward": graph + part.head_gradient + block.backward * tokens,
        "update": (part.gradients + part.temporaries) / shards,
    }
    waiting = part.gradients / shards if loop.accumulation > 1 else 0.0
    flops = sum(_pass_flops(network, length, loop, tokens, masked)) * num_processes * loop.accumulation
    return Budget(
        parameters=2 * part.trained,
        trained=part.trained,
        weights=2 * FLOAT * part.trained / shards,
        moments=part.moments / shards,
        transient=max(phases.values()) + waiting + _gathered([network], [part], loop, num_processes),
        flops=flops,
        total_flops=flops * loop.steps,
    )


class _Trained:
    """The part of a network that is trained.

    Attributes:
        trained: its parameters.
        gradients: bytes of their gradients.
        moments: bytes of the optimizer's state.
        temporaries: bytes that its step needs for a moment.
        head_gradient: bytes of the gradient of the output layer, the first that a backward pass makes.
    """

    def __init__(self, network: DiT | Discriminator, config: OptimizerConfig) -> None:
        self.moments = self.temporaries = 0.0
        for group in make_optimizer(network, config).param_groups:
            size = FLOAT * sum(parameter.numel() for parameter in group["params"])
            is_muon = group.get("is_muon", False)
            self.moments += size if is_muon else 2 * size
            self.temporaries += 4 * size if is_muon else size
        self.trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        self.gradients = FLOAT * self.trained
        head = network.output_layer.parameters()
        self.head_gradient = FLOAT * sum(parameter.numel() for parameter in head if parameter.requires_grad)


def _networks(config: DistillConfig, shape: DiTConfig) -> tuple[DiT, Discriminator]:
    """Student and discriminator without memory, trained in the parts that the recipe trains."""
    settings = config.discriminator
    with torch.device("meta"):
        student = DiT(shape)
        discriminator = Discriminator(DiscriminatorConfig(**vars(shape), output=settings.output))
        if config.lora_rank is None:
            discriminator.train_last_blocks(settings.trainable_blocks)
        else:
            adapt(student, config.lora_rank)
            adapt(discriminator, config.lora_rank, settings.trainable_blocks)
    return student, discriminator


def _distill_transient(
    config: DistillConfig,
    shape: DiTConfig,
    parts: tuple[_Trained, _Trained],
    num_states: float,
    masked: int,
    shards: int,
    *,
    dtype: torch.dtype | None,
) -> float:
    """Bytes of the largest phase of a step, and of what waits through all of them."""
    objective, settings, loop, length = config.objective, config.discriminator, config.loop, config.data.length
    of_student, of_discriminator = parts
    law, row = FLOAT * shape.vocab_size, FLOAT * shape.hidden_size
    block = block_bytes(shape, config.lora_rank, dtype)

    tokens = (num_states + (objective.trajectory != "one-step")) * length
    graph = _graph(block, shape.num_blocks, tokens, row, loop) + row * (2 * tokens + masked + length)
    laws = law * (length + masked)
    judged = 2 * num_states * (settings.completions or objective.completions) * length
    judging = _graph(block, _num_judging(config, shape), judged, row, loop) + (3 * row + block.backward) * judged
    rewarded = num_states * objective.completions * objective.corruptions * length
    teacher_first, compared, comparing = _comparison(objective, length, masked)
    phases = {
        "discriminator": graph
        + laws
        + max(judging, (of_discriminator.gradients + of_discriminator.temporaries) / shards),
        "rewards": graph + laws + (block.forward + row) * rewarded,
        "objective": graph + laws + law * max(comparing, compared + 3 * masked),
        "backward": graph + of_student.head_gradient + block.backward * num_states * length,
        "update": laws + (of_student.gradients + of_student.temporaries) / shards,
    }
    waiting = sum(part.gradients for part in parts) / shards if loop.accumulation > 1 else 0.0
    return max(phases.values()) + waiting + law * teacher_first


def _distill_flops(
    config: DistillConfig,
    shape: DiTConfig,
    student: DiT,
    discriminator: Discriminator,
    num_states: float,
    masked: int,
) -> tuple[float, float]:
    """Operations of one process and micro-batch: of a student step, and of a step of the discriminator's warm-up."""
    objective, settings, loop, length = config.objective, config.discriminator, config.loop, config.data.length
    tokens = (num_states + (objective.trajectory != "one-step")) * length
    scored, scored_back = _pass_flops(student, length, loop, tokens, float(length + masked))
    judged = 2 * num_states * (settings.completions or objective.completions) * length
    judging, judging_back = _pass_flops(discriminator, length, loop, judged, 0.0)
    judging_back *= _num_judging(config, shape) / shape.num_blocks
    rewarded = num_states * objective.completions * objective.corruptions * length
    rewarding, _ = _pass_flops(discriminator, length, loop, rewarded, 0.0)
    teaching, _ = _pass_flops(student, length, loop, num_states * length, float(masked))
    # Before the scored move a state makes (K - 1) / 2 of K on average; the first of them is one row for all states.
    moves = objective.moves or 0
    earlier = (moves - 1) * (moves - 2) / (2 * moves) * num_states + 1 if moves else 0.0
    path, _ = _pass_flops(student, length, loop, earlier * length, 0.0)
    warmup = scored + (judging + judging_back) * settings.steps_per_student_step
    return warmup + scored_back + path + rewarding + teaching * (objective.divergence_weight > 0), warmup


def _num_judging(config: DistillConfig, shape: DiTConfig) -> int:
    """Blocks of the discriminator that are trained."""
    num_blocks = config.discriminator.trainable_blocks
    return shape.num_blocks if num_blocks is None else num_blocks


def _gathered(
    networks: Sequence[DiT | Discriminator], parts: Sequence[_Trained], loop: LoopConfig, num_processes: int
) -> float:
    """Bytes that several processes add to each: what is whole while a network runs, or buckets of gradients."""
    if num_processes == 1:
        return 0.0
    if not loop.fsdp:  # DistributedDataParallel
        return sum(part.gradients for part in parts)
    of_block = num_parameters(networks[0].blocks[0])
    outside = sum(num_parameters(one) - len(one.blocks) * of_block for one in networks)
    return FLOAT * (outside + 4 * of_block)  # two blocks and their gradients


def _graph(block: BlockBytes, num_blocks: int, tokens: float, row: float, loop: LoopConfig) -> float:
    """Bytes that the blocks of one network keep for its gradient."""
    if loop.activation_checkpointing and num_blocks:  # their inputs, and one block that runs again
        return num_blocks * row * tokens + block.kept * tokens + num_blocks * block.kept_once
    return num_blocks * (block.kept * tokens + block.kept_once)


def _pass_flops(
    network: DiT | Discriminator, length: int, loop: LoopConfig, tokens: float, num_laws: float
) -> tuple[float, float]:
    """Operations of a pass over tokens, with so many laws, and of its backward pass."""
    width, num_blocks = network.config.hidden_size, len(network.blocks)
    factor = 1 if any(".lora_" in name for name, _ in network.named_parameters()) else 2  # of inputs, and of weights

    def both(base: float, module: nn.Module) -> tuple[float, float]:
        """For one token or law, forward and backward: the frozen or trained weights, and adapters."""
        adapters = 2 * sum(
            parameter.numel()
            for name, parameter in module.named_parameters()
            if "lora_" in name and "adaLN" not in name
        )
        return base + adapters, factor * base + 2 * adapters

    forward, backward = both(24.0 * width**2 + 4 * length * width, network.blocks[-1])
    law_forward, law_backward = both(2.0 * width * network.vocab_size, network.output_layer)
    again = forward if loop.activation_checkpointing else 0.0
    return (
        num_blocks * forward * tokens + law_forward * num_laws,
        num_blocks * (backward + again) * tokens + law_backward * num_laws,
    )


def _likely_masked(objective: ObjectiveConfig, num_states: float) -> float:
    """Rows' worth of masked positions in the intermediate states: mean and three standard deviations, all at most."""
    a, b = objective.time_a, objective.time_b
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    if objective.moves is not None:  # times 1 - k / moves for k in [0, moves)
        mean, variance = (1 + 1 / objective.moves) / 2, (1 - 1 / objective.moves**2) / 12
    if objective.trajectory == "one-step":
        return num_states
    return min(num_states, mean * num_states + 3 * math.sqrt(variance * num_states))


def _comparison(objective: ObjectiveConfig, length: int, masked: int) -> tuple[float, float, float]:
    """Laws' worth of bytes: the teacher's first, which stays; what a gradient keeps; and what is alive at the peak."""
    if not objective.divergence_weight:
        return 0.0, 0.0, 3.25 * max(length, masked)
    # exp and where keep 1.25; the second comparison has the teacher's law, a gap and 3.25 of an expectation beside it.
    kept = 1.25 if objective.divergence != "jeffreys" else 3.5
    return float(length), kept * (length + masked), kept * length + (4 + kept) * masked
