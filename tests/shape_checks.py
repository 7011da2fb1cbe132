"""Run-time checks of the shapes and types of didi's functions, in a part of the calls.

A check takes some 50 µs, as long as several operations on the small tensors of the tests, and 2 ms to compile. It is
compiled at the first call. In each test the first ``ALWAYS`` calls of a function are checked, then one of ``EVERY``.
Functions within functions, which would be compiled anew whenever they are defined, are not checked.
"""

import functools

import jaxtyping

ALWAYS, EVERY = 10, 20
_test = 0


def next_test():
    """Count the calls of each function from 0 again."""
    global _test
    _test += 1


def install():
    """Check all functions and dataclasses of didi; to be called before didi is imported for the first time."""
    jaxtyping.jaxtyped = _lazily(jaxtyping.jaxtyped)  # the decorator that the import hook inserts
    jaxtyping.install_import_hook("didi", "beartype.beartype")


def _lazily(jaxtyped):
    def decorator(*, typechecker):
        compiled = functools.partial(jaxtyped, typechecker=typechecker)
        return lambda target: compiled(target) if isinstance(target, type) else _checked(target, compiled)

    return decorator


def _checked(function, compiled):
    if "<locals>" in function.__qualname__:
        return function
    check, test, calls = None, None, 0

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal check, test, calls
        if test != _test:
            test, calls = _test, 0
        calls += 1
        if calls > ALWAYS and calls % EVERY:
            return function(*args, **kwargs)
        if check is None:
            check = compiled(function)
        return check(*args, **kwargs)

    return call
