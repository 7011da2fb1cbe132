"""Copies of a network that share its weights and differ in an attribute."""

import copy
from types import MethodType
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shallow_copy(network: Network) -> Network:
    """A copy with the same submodules and parameters, whose attributes and submodules can be replaced independently.

    Methods that were set on the instance (``models.inference``) are bound to the copy.
    """
    result = copy.copy(network)
    for name in ("_modules", "_parameters", "_buffers"):
        vars(result)[name] = dict(vars(network)[name])
    for name, value in vars(network).items():
        if isinstance(value, MethodType) and value.__self__ is network:
            vars(result)[name] = MethodType(value.__func__, result)
    return result
