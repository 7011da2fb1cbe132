"""Bytes of live tensors, on any device; exact, and independent of the allocator."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, no_type_check

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@no_type_check  # runs for every operation: type checks in tests would take minutes
class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages that operations within the context allocate, until they are freed.

    Workspace within kernels and storages from before the context do not count. A resized storage counts with its new
    size, since FSDP2 frees and allocates gathered weights by resizing.

    Attributes:
        now: bytes of live storages.
        peak: maximum of ``now`` since the last ``reset_peak``, or since the start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> "LiveMemory":
        resize = torch.UntypedStorage.resize_

        def counted_resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if id(storage) in self._known:
                self._add(storage.nbytes() - self._sizes[id(storage)])
                self._sizes[id(storage)] = storage.nbytes()
            return result

        self._resize: Any = resize
        torch.UntypedStorage.resize_ = counted_resize  # type: ignore
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count the storages of its results, except those of its inputs."""
        inputs = {id(tensor.untyped_storage()) for tensor in _tensors((*args, *(kwargs or {}).values()))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((result,)):
            if id(tensor.untyped_storage()) not in inputs:
                self._count(tensor.untyped_storage())
        return result

    def reset_peak(self) -> None:
        """Reset ``peak`` to ``now``."""
        self.peak = self.now

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key))
        self._sizes[key] = storage.nbytes()
        self._add(storage.nbytes())

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._known[key]

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@no_type_check
def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
