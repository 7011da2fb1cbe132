"""Unpickling of untrusted checkpoints: tensors and containers are read, all other objects become placeholders.

A pickle names the functions and classes that rebuild its objects. ``Unpickler`` looks up each name in the table
``KNOWN`` and imports nothing. A name that is not in the table becomes ``Placeholder``, which takes any arguments and
any state and does nothing. So settings, tokenizers and code in a checkpoint are skipped, and its tensors are read.

The module is passed to ``torch.load`` as ``pickle_module``, which uses ``load`` and ``Unpickler``.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch


class Placeholder:
    """Replaces objects of classes and results of functions that are not in ``KNOWN``; it holds no data."""

    dtype = torch.uint8  # torch.load reads this attribute of the class of an untyped storage, whose size is in bytes

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> "Placeholder":
        """Another placeholder."""
        return Placeholder()

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...

    def append(self, _: object) -> None:
        """Ignore an item of a list-like object."""


class Known:
    """A function or class of ``KNOWN`` that a pickle may call, but not change.

    A pickle can set attributes of any object that it names; without this class they would be set on torch itself.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __setstate__(self, _: object) -> None: ...


def _plain_parameter(data: Any, requires_grad: Any, hooks: Any, _state: Any) -> Any:
    """A parameter without the attributes that were set on it."""
    return torch._utils._rebuild_parameter(data, requires_grad, hooks)


def _plain_tensor(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """A tensor of a subclass, or one with attributes, as a plain tensor."""
    return function(*args)


KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": torch._utils._rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _plain_parameter,
    "torch._tensor._rebuild_from_type_v2": _plain_tensor,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class Unpickler(pickle._Unpickler):
    """A ``pickle.Unpickler`` that imports nothing and calls nothing but the functions of ``KNOWN``.

    The base class is the Python implementation; the C implementation allocates lists of any size that a file requests.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The function of ``KNOWN`` or the data type of torch that has this name; ``Placeholder`` for any other."""
        name = f"{module_name}.{global_name}"
        if name in KNOWN:
            return Known(KNOWN[name])
        return DTYPES.get(name, Placeholder)


def load(file: Any, **options: Any) -> Any:
    """As ``pickle.load``, with ``Unpickler``."""
    return Unpickler(file, **options).load()
