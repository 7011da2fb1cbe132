"""Continuous batching: jobs of different requests, each at its own move, share passes of the network.

In each round every running job advances by one pass. Jobs of samplers that yield their passes (``sampling.passes``) are
grouped by network and padded length, and the trunk processes each group as one batch. Their tokens are then drawn
together. Every other job makes one move per round. A job that arrives starts in the next round; a job that ends is
removed at the end of its round.

The samples of a job do not depend on the other jobs: each job has its own random numbers; trunk, head and draws process
rows independently; the padded length of a row depends only on its own length; and the head always has at least
``FEWEST_ROWS`` rows.
"""

import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from didi.sampling.memory import out_of_memory
from didi.serving.job import Job
from didi.serving.shared import LOGITS, POSITIONS, padded_length, shared_features, shared_tokens
from didi.torch_defaults import torch_defaults


class Scheduler:
    """Runs jobs round by round, in one thread.

    Args:
        max_batch: limit on the sequences that run at the same time; a job with more sequences runs alone.

    Attributes:
        waiting: jobs in the order of their arrival.
        running: jobs that have started.
        num_passes: trunk passes for groups of one or more jobs.
        num_rows: rows in these passes.
    """

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.num_passes = self.num_rows = 0

    @property
    def is_idle(self) -> bool:
        """Whether no job waits or runs."""
        return not (self.waiting or self.running)

    def step(self) -> int:
        """Run one round; return the number of jobs that ended in it."""
        now, before = time.monotonic(), [*self.waiting, *self.running]
        for job in before:
            job.check(now)
        self.waiting = deque(job for job in self.waiting if not job.has_ended)
        with torch_defaults():
            self._admit()
            for group in pass_groups([job for job in self.running if job.trunk_pass is not None]):
                self._share(group)
            for group in draw_groups([job for job in self.running if job.token_draw is not None]):
                _draw(group)
            for job in self.running:
                if not (job.shares_passes or job.has_ended):
                    job.advance(None)
        self.running = [job for job in self.running if not job.has_ended]
        return sum(job.has_ended for job in before)

    def _admit(self) -> None:
        """Start waiting jobs in the order of their arrival while the batch has room."""
        self.running = [job for job in self.running if not job.has_ended]
        num = sum(map(len, self.running))
        while self.waiting and (num == 0 or num + len(self.waiting[0]) <= self.max_batch):
            job = self.waiting.popleft()
            self.running.append(job)
            job.start()
            num += len(job)

    def _share(self, jobs: Sequence[Job]) -> None:
        """Make one pass for all of ``jobs``, and advance each job."""
        passes = [job.trunk_pass for job in jobs if job.trunk_pass is not None]
        sampler: Any = jobs[0].plan.sampler
        rows = sum(len(trunk_pass.inputs) for trunk_pass in passes)
        try:
            with out_of_memory(rows):
                features = shared_features(sampler.denoiser, sampler.process, passes)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].end(error)
            else:  # the memory may suffice for one job
                for job in jobs:
                    self._share([job])
            return
        self.num_passes, self.num_rows = self.num_passes + 1, self.num_rows + rows
        for job, answer in zip(jobs, features, strict=True):
            job.advance(answer)


def _draw(jobs: Sequence[Job]) -> None:
    """Draw the tokens of all of ``jobs`` together, and advance each job."""
    draws = [job.token_draw for job in jobs if job.token_draw is not None]
    try:
        with out_of_memory(sum(len(draw.features) for draw in draws)):
            samplers: list[Any] = [job.plan.sampler for job in jobs]
            tokens = shared_tokens(samplers, draws)
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].end(error)
        else:  # only jobs whose own logits are not finite end with an error
            for job in jobs:
                _draw([job])
        return
    for job, answer in zip(jobs, tokens, strict=True):
        job.advance(answer)


def pass_groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Groups of jobs that share a pass: equal network and padded length, at most ``POSITIONS`` positions."""
    groups: dict[tuple[Hashable, int], list[Job]] = {}
    for job in jobs:
        assert job.trunk_pass is not None
        length = padded_length(job.trunk_pass.inputs.shape[1], _network(job).length)
        groups.setdefault((job.network_key, length), []).append(job)
    for (_, length), members in groups.items():
        most = POSITIONS.get(members[0].plan.canvas.tokens.device.type, POSITIONS["cuda"])
        sizes = [length * len(job.trunk_pass.inputs) for job in members if job.trunk_pass is not None]
        yield from _chunks(members, sizes, most)


def draw_groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Groups of jobs that draw together: equal network, temperature and top-p, at most ``LOGITS`` logits."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        distribution = job.plan.sampler.token_distribution
        groups.setdefault((job.network_key, distribution.temperature, distribution.top_p), []).append(job)
    for members in groups.values():
        vocab_size = _network(members[0]).vocab_size
        sizes = [vocab_size * len(job.token_draw.features) for job in members if job.token_draw is not None]
        yield from _chunks(members, sizes, LOGITS)


def _chunks(jobs: Sequence[Job], sizes: Sequence[int], most: int) -> Iterator[list[Job]]:
    """Consecutive jobs in chunks whose total size is at most ``most``; a larger job is a chunk of its own."""
    chunk: list[Job] = []
    total = 0
    for job, size in zip(jobs, sizes, strict=True):
        if chunk and total + size > most:
            yield chunk
            chunk, total = [], 0
        chunk.append(job)
        total += size
    if chunk:
        yield chunk


def _network(job: Job) -> Any:
    return job.plan.sampler.denoiser  # type: ignore[attr-defined]
