"""Exceptions that end a command with one line on standard error: the rule, the value and how to correct it."""

import difflib
from collections.abc import Iterable


class DidiError(RuntimeError):
    """A failure not caused by the user's input: of a network or a disk, or a damaged file (exit status 1)."""


class UsageError(DidiError, ValueError):
    """Invalid input: an argument, a flag or a file cannot be used as given (exit status 2)."""


class NotFinite(DidiError):
    """No token can be drawn, since logits are NaN or infinite, because of a network's weights or a setting."""


class Interrupted(DidiError):
    """A training run was interrupted and has saved its state (exit status 130)."""


class Diverged(DidiError):
    """The loss, gradient or validation of a training run is not finite (exit status 1); all its processes raise it."""


def from_checkout(extra: str) -> str:
    """Instruction to install the packages of an extra; it needs a checkout, since the distribution is not published.

    Args:
        extra: name of an optional dependency group in ``pyproject.toml``.
    """
    return f"in a checkout of didi, run: pip install '.[{extra}]'"


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?`` with the known name most similar to ``name``; empty if none is similar enough.

    Args:
        name: the unknown name.
        known: the known names.
        cutoff: least similarity in [0, 1]; see ``difflib.get_close_matches``.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
