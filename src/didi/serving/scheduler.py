"""Continuous batching: jobs at different moves, of different requests, share passes of the network.

In each round every running job advances by one pass. Jobs whose samplers ask for passes (``sampling.passes``) are
grouped by network and length; a group goes through the trunk as one batch. Between these passes, the other jobs advance
by one move each. A job that arrives joins in the next round, and one that ends leaves its place at once. Tokens that
the jobs of a pass want are drawn together too.

What a job draws does not depend on the others. Its random numbers are its own. Trunk, head and draws treat rows apart,
the length that a row is padded to follows from its own length alone, and the head always has ``FEWEST_ROWS`` or more.
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
            for group in grouped([job for job in self.running if job.trunk_pass is not None]):
                self._share(group)
            for drawing in drawn_together([job for job in self.running if job.token_draw is not None]):
                _draw(drawing)
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
            self.running.append(job)
            job.start()
            num += len(job)

    def _share(self, jobs: Sequence[Job]) -> None:
        """A pass for all of ``jobs``, and what each makes of it."""
        passes = [job.trunk_pass for job in jobs if job.trunk_pass is not None]
        sampler: Any = jobs[0].plan.sampler
        rows = sum(len(one.inputs) for one in passes)
        try:
            with out_of_memory(rows):
                features = shared_features(sampler.denoiser, sampler.process, passes)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].end(error)
            else:  # such as too little memory for all at once
                for job in jobs:
                    self._share([job])
            return
        self.num_passes, self.num_rows = self.num_passes + 1, self.num_rows + rows
        for job, own in zip(jobs, features, strict=True):
            job.advance(own)


def _draw(jobs: Sequence[Job]) -> None:
    """Tokens for all of ``jobs``, and what each makes of them."""
    draws = [job.token_draw for job in jobs if job.token_draw is not None]
    try:
        with out_of_memory(sum(len(one.features) for one in draws)):
            samplers: list[Any] = [job.plan.sampler for job in jobs]
            tokens = shared_tokens(samplers, draws)
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].end(error)
        else:  # the jobs whose logits are not finite fail, the others go on
            for job in jobs:
                _draw([job])
        return
    for job, own in zip(jobs, tokens, strict=True):
        job.advance(own)


def grouped(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that share a pass: of one network and padded length, as many as ``POSITIONS`` allows."""
    groups: dict[tuple[Hashable, int], list[Job]] = {}
    for job in jobs:
        assert job.trunk_pass is not None
        length = padded_length(job.trunk_pass.inputs.shape[1], _network(job).length)
        groups.setdefault((_key(job), length), []).append(job)
    for (_, length), members in groups.items():
        most = POSITIONS.get(members[0].plan.canvas.tokens.device.type, POSITIONS["cuda"])
        sizes = [length * len(job.trunk_pass.inputs) for job in members if job.trunk_pass is not None]
        yield from _parts(members, sizes, most)


def drawn_together(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that draw tokens together: of one network, temperature and top-p, as many as ``LOGITS`` allows."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        token_distribution = job.plan.sampler.token_distribution
        groups.setdefault((_key(job), token_distribution.temperature, token_distribution.top_p), []).append(job)
    for members in groups.values():
        vocab_size = _network(members[0]).vocab_size
        sizes = [vocab_size * len(job.token_draw.features) for job in members if job.token_draw is not None]
        yield from _parts(members, sizes, LOGITS)


def _parts(jobs: Sequence[Job], sizes: Sequence[int], most: int) -> Iterator[list[Job]]:
    """Jobs in their order, as many together as have a size of at most ``most`` in sum; a larger one stands alone."""
    part: list[Job] = []
    total = 0
    for job, size in zip(jobs, sizes, strict=True):
        if part and total + size > most:
            yield part
            part, total = [], 0
        part.append(job)
        total += size
    if part:
        yield part


def _network(job: Job) -> Any:
    return job.plan.sampler.denoiser  # type: ignore[attr-defined]


def _key(job: Job) -> Hashable:
    """A network, by its weights and the number of moves that it is conditioned on."""
    network = _network(job)
    return id(next(network.parameters())), getattr(network, "budget", None)
