"""One process or several, as ``torchrun`` starts them: which one this is, what its share is, what all have together.

Several processes divide the rows of a batch and draw its randomness as one process would, so that results do not depend
on their number beyond the rounding of sums. Every function here must be called by all of them.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from didi.errors import DidiError

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """A process among ``size``.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, num: int) -> slice:
        """Which of ``num`` rows are this process's: a run of them, equal among processes up to one row."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def mine(self, rows: Tensor) -> Tensor:
        """This process's share of the first axis."""
        return rows[self.share(len(rows))]

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over processes."""
        return self.sum(values) / self.size

    def part_of_mean(self, values: Tensor) -> Tensor:
        """This process's part of the mean over the values of all processes, of which ``mean`` makes that mean."""
        num = self.mean(torch.tensor(float(values.numel()), device=values.device))
        return values.sum() / num.clamp(min=1 / self.size)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, each of which has as many, in their order; no gradient flows back."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    def joined_items(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, each of which may have another number, in their order."""
        if self.size == 1:
            return list(items)
        parts: list[Sequence[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def any(self, flag: bool) -> bool:
        """Whether a process says so."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=default_device())))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.any(False)


_ALONE = World()
_current = _ALONE


def world() -> World:
    """This process among those that ``joined`` brought together; alone otherwise."""
    return _current


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that ``torchrun`` started beside this one; alone where there are none.

    Raises:
        DidiError: another process ended while this one communicated with it.
    """
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield _ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(default_device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    _current = World(dist.get_rank(), size)
    try:
        yield _current
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        raise DidiError("another process of this run has ended, and says why") from error
    finally:
        _current = _ALONE
        # A wrapper of a network that is part of a reference cycle would keep the group's threads until the interpreter
        # ends, which then aborts.
        gc.collect()
        dist.destroy_process_group()


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether a backend of torch.distributed raised it; gloo has no exception of its own, but names its source file."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "/gloo/" in str(error))


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """A copy of a CPU tensor on ``device``; the host does not wait for a CUDA device that receives it."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Wait until a CUDA device has done all its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _StandIn(World):
    """A process whose others do not exist; they are taken to hold the same items."""

    def joined_items(self, items: Sequence[Item]) -> list[Item]:
        """See ``World.joined_items``."""
        return list(items) * self.size


@contextmanager
def stand_in(size: int) -> Iterator[World]:
    """As ``joined``, for the first of ``size`` processes whose others do not exist: what they would send is undefined.

    For runs whose values do not matter (``training.dry_run``).
    """
    global _current
    from torch.testing._internal.distributed.fake_pg import FakeStore

    before = _current
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    _current = _StandIn(0, size)
    try:
        yield _current
    finally:
        _current = before
        dist.destroy_process_group()


def default_device() -> torch.device:
    """The accelerator if there is one, and among several processes of a machine the one that is this process's."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if local is None else torch.device("cuda", int(local))
