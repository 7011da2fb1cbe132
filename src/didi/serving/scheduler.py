"""Continuous batching: jobs at different moves, of different requests, share passes of the network.

In each round every running job advances by one pass. Jobs whose samplers ask for passes (``sampling.passes``) are
grouped by network and length; a group goes through the trunk as one batch. Between these passes, the other jobs advance
by one move each. A job that arrives joins in the next round, and one that ends leaves its place at once.

What a job draws does not depend on the others. Its random numbers, vocabulary head and draws are its own. The trunk
treats rows apart, and the length that a row is padded to follows from its own length alone.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion import Process
from didi.models.denoiser import Denoiser
from didi.sampling.base import noise_levels
from didi.sampling.memory import out_of_memory
from didi.sampling.passes import PassSampler, TrunkPass
from didi.serving.job import Job
from didi.torch_defaults import torch_defaults

SHORTEST = 16
"""Least padded length. Kernels on a CPU work on 8 or 16 positions at a time and round what is left over otherwise."""
POSITIONS = {"cpu": 2**11, "cuda": 2**16}
"""Most positions in a pass: on a CPU, more do not fit in its cache and gain no time."""


def padded_length(length: int, context: int) -> int:
    """Positions that a row of ``length`` takes in a pass: a power of two, and at most the network's ``context``."""
    return max(length, min(context, max(SHORTEST, 1 << (length - 1).bit_length())))


class Scheduler:
    """Runs jobs round by round, in one thread.

    Args:
        max_batch: sequences that run at the same time; a job of more runs alone.

    Attributes:
        waiting: jobs in the order of their arrival.
        running: jobs that have started.
        num_passes: passes of trunks that were shared, or could have been.
        num_rows: rows in those.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.num_passes = self.num_rows = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.running)

    def step(self) -> int:
        """One round; the number of jobs that ended in it."""
        now, before = time.monotonic(), [*self.waiting, *self.running]
        for job in before:
            job.check(now)
        self.waiting = deque(job for job in self.waiting if not job.has_ended)
        with torch_defaults():
            self._admit()
            asking = [job for job in self.running if job.asked is not None]
            for group in grouped(asking):
                self._share(group)
            for job in self.running:
                if not (job.shares_passes or job.has_ended):
                    job.advance(None)
        self.running = [job for job in self.running if not job.has_ended]
        return sum(job.has_ended for job in before)

    def _admit(self) -> None:
        """Start jobs as long as there is room, in the order of their arrival."""
        self.running = [job for job in self.running if not job.has_ended]
        num = sum(map(len, self.running))
        while self.waiting and (num == 0 or num + len(self.waiting[0]) <= self.max_batch):
            job = self.waiting.popleft()
            job.start()
            self.running.append(job)
            num += len(job)

    def _share(self, jobs: Sequence[Job]) -> None:
        """A pass for all of ``jobs``, and what each makes of it."""
        passes = [job.asked for job in jobs if job.asked is not None]
        sampler: Any = jobs[0].plan.sampler
        rows = sum(len(one.inputs) for one in passes)
        try:
            with out_of_memory(rows):
                features = shared_features(sampler.denoiser, sampler.process, passes)
        except Exception as error:
            for job in jobs:
                job.end(error)
            return
        self.num_passes, self.num_rows = self.num_passes + 1, self.num_rows + rows
        for job, own in zip(jobs, features, strict=True):
            job.advance(own)


def grouped(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that share a pass: of one network and padded length, as many as ``POSITIONS`` allows."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(_key(job), []).append(job)
    for (*_, length), members in groups.items():
        most = POSITIONS.get(members[0].plan.canvas.tokens.device.type, POSITIONS["cuda"])
        part: list[Job] = []
        for job in members:
            if part and length * (_num_rows(part) + _num_rows([job])) > most:
                yield part
                part = []
            part.append(job)
        yield part


def _key(job: Job) -> tuple[Any, ...]:
    """Network, by its weights and the number of moves that it is conditioned on, and padded length."""
    sampler, asked = job.plan.sampler, job.asked
    assert isinstance(sampler, PassSampler)
    assert asked is not None
    network: Any = sampler.denoiser
    weights = id(next(network.parameters()))
    return weights, getattr(network, "budget", None), padded_length(asked.inputs.shape[1], network.length)


def _num_rows(jobs: Sequence[Job]) -> int:
    return sum(len(job.asked.inputs) for job in jobs if job.asked is not None)


@torch.inference_mode()
def shared_features(
    denoiser: Denoiser, process: Process, passes: Sequence[TrunkPass]
) -> list[Float[Tensor, "_r _l d"]]:
    """Features of each of ``passes``, from one pass of the trunk; all have one padded length."""
    length = padded_length(passes[0].inputs.shape[1], denoiser.length)
    rows = [len(one.inputs) for one in passes]
    device = passes[0].inputs.device
    inputs = torch.zeros(sum(rows), length, dtype=torch.long, device=device)
    is_real = torch.zeros_like(inputs, dtype=torch.bool)
    for one, there, real in zip(passes, inputs.split(rows), is_real.split(rows), strict=True):
        width = one.inputs.shape[1]
        there[:, :width] = one.inputs
        real[:, :width] = True if one.attention_mask is None else one.attention_mask
    has_padding = any(one.attention_mask is not None or one.inputs.shape[1] < length for one in passes)
    levels = [noise_levels(denoiser, process, one.t, one.inputs) for one in passes]
    level = None if levels[0] is None else torch.cat([one for one in levels if one is not None])
    features = denoiser.features(inputs, level, is_real if has_padding else None)
    return [own[:, : one.inputs.shape[1]] for one, own in zip(passes, features.split(rows), strict=True)]
