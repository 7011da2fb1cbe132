"""The processes of a run, as ``torchrun`` starts them: rank, rows of a batch for each, and collective operations.

The processes divide the rows of a batch and draw its random numbers as a single process would, so that results do not
depend on the number of processes beyond the rounding of sums. Collective operations must be called by all processes.
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
class ProcessGroup:
    """This process and the number of processes in the run.

    Attributes:
        rank: rank of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints: rank 0."""
        return self.rank == 0

    def local_slice(self, num: int) -> slice:
        """Contiguous slice of ``num`` rows for this process; slices differ by at most one row."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def local_rows(self, rows: Tensor) -> Tensor:
        """``local_slice`` of the first axis."""
        return rows[self.local_slice(len(rows))]

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum of ``values`` over processes; they have the same shape in all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean of ``values`` over processes; they have the same shape in all processes."""
        return self.sum(values) / self.size

    def local_term_of_mean(self, values: Tensor) -> Tensor:
        """Local term, a scalar, whose mean over processes is the mean of the values of all processes.

        Processes may have values of different shapes, also none; without any values the term is 0.
        """
        num = self.mean(torch.tensor(float(values.numel()), device=values.device))
        return values.sum() / num.clamp(min=1 / self.size)

    def all_gather(self, rows: Tensor) -> Tensor:
        """Rows ``[n, ...]`` of each process as ``[size * n, ...]`` in the order of ranks, without gradient."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        return torch.cat(parts)

    def all_gather_items(self, items: Sequence[Item]) -> list[Item]:
        """Items of all processes in the order of ranks; the number of items may differ."""
        if self.size == 1:
            return list(items)
        parts: list[Sequence[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on at least one process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=default_device())))

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.size > 1:
            self.any(False)


_ALONE = ProcessGroup()
_current = _ALONE


def process_group() -> ProcessGroup:
    """The group of ``init_process_group``; within no such block, a group of this process alone."""
    return _current


@contextmanager
def init_process_group() -> Iterator[ProcessGroup]:
    """Initialise ``torch.distributed`` for the processes that ``torchrun`` started, if there are several.

    Raises:
        DidiError: another process ended during a collective operation.
    """
    global _current
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield _ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(default_device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    _current = ProcessGroup(dist.get_rank(), size)
    try:
        yield _current
    except RuntimeError as error:
        if not _is_communication_error(error):
            raise
        raise DidiError("another process of this run has ended; its output has the reason") from error
    finally:
        _current = _ALONE
        # A wrapper of a network that is part of a reference cycle would keep the group's threads until the interpreter
        # ends, which then aborts.
        gc.collect()
        dist.destroy_process_group()


def _is_communication_error(error: RuntimeError) -> bool:
    """Whether a backend of torch.distributed raised it; gloo has no exception of its own, but names its source file."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "/gloo/" in str(error))


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """A copy of a CPU tensor on ``device``; the host does not wait for a CUDA device that receives it."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device has done all its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _FakeProcessGroup(ProcessGroup):
    """A group whose other processes do not exist; their items are taken to equal the local ones."""

    def all_gather_items(self, items: Sequence[Item]) -> list[Item]:
        """See ``ProcessGroup.all_gather_items``."""
        return list(items) * self.size


@contextmanager
def fake_process_group(size: int) -> Iterator[ProcessGroup]:
    """Rank 0 of a simulated group of ``size`` processes; tensors received from other ranks are undefined.

    For runs whose values do not matter (``training.dry_run``).
    """
    global _current
    from torch.testing._internal.distributed.fake_pg import FakeStore

    before = _current
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    _current = _FakeProcessGroup(0, size)
    try:
        yield _current
    finally:
        _current = before
        dist.destroy_process_group()


def default_device() -> torch.device:
    """The CUDA device of this process (``LOCAL_RANK``, else the current one), or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda") if local is None else torch.device("cuda", int(local))
