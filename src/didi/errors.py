"""Exceptions that end a command with one line on standard error: the rule, the value and how to correct it."""

import difflib
from collections.abc import Iterable


class DidiError(RuntimeError):
    """A failure that the user's input did not cause: a network, a disk, a damaged file (exit status 1)."""


class UsageError(DidiError, ValueError):
    """Invalid input: an argument, a flag or a file cannot be used as given (exit status 2)."""


class NotFinite(DidiError):
    """No token can be drawn, since logits are NaN or infinite: by the weights of a network, or by a setting."""


class Interrupted(DidiError):
    """A training run was asked to stop and has saved its state (exit status 130)."""


class Diverged(DidiError):
    """A training run whose loss, gradient or validation is not finite (exit status 1); all its processes raise it."""


def from_checkout(extra: str) -> str:
    """How to install the packages of an extra; the distribution is not published, so a checkout is needed.

    Args:
        extra: name of an optional dependency group in ``pyproject.toml``.
    """
    return f"in a checkout of didi, run: pip install '.[{extra}]'"


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?`` with the known name most like ``name``; empty where none is alike enough.

    Args:
        name: what was given.
        known: what there is.
        cutoff: least likeness in [0, 1], as ``difflib.get_close_matches`` measures it.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
