"""Copies of a network that share its weights and differ in an attribute."""

import copy
from types import MethodType
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shallow_copy(network: Network) -> Network:
    """A copy with the same modules and parameters, whose attributes and submodules can be set without the other's.

    Methods that an instance has instead of its class's (``models.inference``) are bound to the copy.
    """
    found = copy.copy(network)
    for name in ("_modules", "_parameters", "_buffers"):
        vars(found)[name] = dict(vars(network)[name])
    for name, value in vars(network).items():
        if isinstance(value, MethodType) and value.__self__ is network:
            vars(found)[name] = MethodType(value.__func__, found)
    return found
