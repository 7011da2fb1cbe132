"""The real samples x' of Algorithm 1: corpus rows or teacher samples (row 1 of ``docs/deviations.md``)."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import save
from torch import Tensor

from didi.data.source import Source
from didi.diffusion.noise import derive_seed, named_generator
from didi.files import write_atomically
from didi.methods.didi_settings import DistillConfig
from didi.models.bundle import Bundle
from didi.models.weights import read_tensors
from didi.process_group import process_group
from didi.sampling.generate import generate
from didi.sampling.stream import Move

PROGRESS_SECONDS = 10.0  # between progress reports of a teacher pool

TEACHER_POOL = "teacher-pool.safetensors"  # a file in the folder of a run
RealSampler = Callable[[int, int, int, int], Int[Tensor, "b l"]]


def real_sampler(config: DistillConfig, source: Source, teacher: Bundle, folder: Path) -> RealSampler:
    """A deterministic function from step, micro-batch, discriminator update and number of rows to real rows.

    Args:
        config: ``discriminator.real_source`` names the source.
        source: the corpus.
        teacher: frozen teacher; since it does not change, its samples may be reused.
        folder: folder of the run, which keeps a teacher pool.
    """
    settings = config.discriminator
    num_updates = settings.steps_per_student_step
    num_copies = config.objective.group_size if config.objective.advantage == "rows" else 1

    def corpus(step: int, micro_batch: int, update: int, size: int) -> Tensor:
        draw = (step * config.loop.accumulation + micro_batch) * num_updates + update
        return source.batch(draw, size // num_copies).repeat_interleave(num_copies, 0)

    if settings.real_source == "corpus":
        return corpus
    if settings.real_source == "teacher-pool":
        pool = _teacher_pool(teacher, folder / TEACHER_POOL, config)

        def from_pool(step: int, micro_batch: int, update: int, size: int) -> Tensor:
            generator = named_generator(config.seed, "pool", step, micro_batch, update)
            return pool[torch.randint(len(pool), (size,), generator=generator)]

        return from_pool
    nfe = int(settings.real_source.removeprefix("teacher-steps="))

    def online(step: int, micro_batch: int, update: int, size: int) -> Tensor:
        return generate(
            teacher,
            num_samples=size,
            nfe=nfe,
            seed=derive_seed(config.seed, "online", step, micro_batch, update),
            batch_size=size,
            length=config.data.length,
            role="teacher",
        ).tokens

    return online


def _teacher_pool(teacher: Bundle, path: Path, config: DistillConfig) -> Int[Tensor, "n l"]:
    """Many-step teacher samples, drawn once and stored in the run's folder: the teacher is frozen, so reuse is exact.

    Raises:
        DidiError: the stored file is damaged.
    """
    if not path.is_file():
        settings = config.discriminator
        generation = generate(
            teacher,
            num_samples=settings.pool_size,
            nfe=settings.pool_nfe,
            seed=derive_seed(config.seed, "pool"),
            length=config.data.length,
            role="teacher",
            on_move=_pool_progress(settings.pool_size, settings.pool_nfe),
        )
        if process_group().is_main:
            write_atomically(path, save({"tokens": generation.tokens}))
        process_group().barrier()
    return read_tensors(path, "tokens", remedy="delete it, and the next start draws the same samples again")["tokens"]


def _pool_progress(pool_size: int, nfe: int) -> Callable[[Move], None]:
    """A callback that reports the progress of a teacher pool to standard error, every ``PROGRESS_SECONDS``."""
    num_local = len(range(pool_size)[process_group().local_slice(pool_size)])  # other processes draw as many
    reported = time.monotonic()

    def on_move(move: Move) -> None:
        nonlocal reported
        if process_group().is_main and time.monotonic() - reported >= PROGRESS_SECONDS:
            reported = time.monotonic()
            share = (move.indices[0] + len(move.indices) * move.number / nfe) / num_local
            line = f"teacher pool of {pool_size} sequences, {nfe} moves each: {share:.0%} drawn"
            print(line, file=sys.stderr, flush=True)

    return on_move
