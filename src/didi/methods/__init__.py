"""Training methods: one file each, found by name in ``METHODS``."""

from typing import Any

from didi.arguments import one_of
from didi.methods.base import Method
from didi.methods.dcd import Dcd
from didi.methods.didi import Didi
from didi.methods.dimo import Dimo
from didi.methods.duo import Duo
from didi.methods.elbo import Elbo
from didi.methods.mmd import Mmd
from didi.methods.sdtt import Sdtt
from didi.methods.settings import RunConfig

METHODS: dict[str, type[Any]] = {method.name: method for method in (Elbo, Duo, Didi, Sdtt, Dcd, Dimo, Mmd)}
"""Classes that implement ``methods.base.Method``, by name."""

__all__ = ["METHODS", "Method", "find_method", "method_of"]


def find_method(name: str) -> type[Any]:
    """The class of the method called ``name``.

    Raises:
        UsageError: no method has that name.
    """
    return METHODS[one_of("a method", name, list(METHODS))]


def method_of(settings: RunConfig) -> type[Any]:
    """The method whose settings class is that of ``settings``."""
    (method,) = [kind for kind in METHODS.values() if kind.settings_type is type(settings)]
    return method
