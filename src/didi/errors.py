"""Exceptions that end a command with one line on standard error: the rule, the value and how to correct it."""

import difflib
from collections.abc import Iterable


class DidiError(RuntimeError):
    """Base class of errors; raised itself for causes other than input: the Hub, a disk, a damaged file (status 1)."""


class UsageError(DidiError, ValueError):
    """An argument, a flag or a file cannot be used as given (exit status 2)."""


class NotFinite(DidiError):
    """The logits of a network are NaN or infinite, so that no token can be drawn (exit status 1)."""


class Interrupted(DidiError):
    """A training run was interrupted and has saved its state (exit status 130)."""


class Diverged(DidiError):
    """Losses, gradients or validation metrics of a run are not finite (exit status 1); raised in all its processes."""


def from_checkout(extra: str) -> str:
    """How to install an extra, for an error message; from a checkout, since the distribution is not published.

    Args:
        extra: name of an optional dependency group in ``pyproject.toml``.
    """
    return f"in a checkout of didi, run: pip install '.[{extra}]'"


def first_line(error: Exception) -> str:
    """First line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?`` with the known name most similar to ``name``; empty if none is similar enough.

    Args:
        name: the unknown name.
        known: the known names.
        cutoff: minimum similarity in [0, 1]; see ``difflib.get_close_matches``.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
