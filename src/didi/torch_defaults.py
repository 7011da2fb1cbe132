"""Torch's global settings as this package needs them, independent of the caller's."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Params = ParamSpec("Params")
Result = TypeVar("Result")


@contextmanager
def torch_defaults() -> Iterator[None]:
    """float32 as the default dtype, the CPU as the default device; neither autocast nor inference mode."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def with_torch_defaults(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Decorator: run a function under ``torch_defaults``."""

    @wraps(function)
    def run(*args: Params.args, **named: Params.kwargs) -> Result:
        with torch_defaults():
            return function(*args, **named)

    return run


def each_with_torch_defaults(items: Iterator[Result]) -> Iterator[Result]:
    """The items of an iterator, each computed under ``torch_defaults``; between items the caller's settings apply."""
    while True:
        with torch_defaults():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
