"""Exceptions that end a command with one line on standard error: the rule, the value and how to correct it."""


class DidiError(RuntimeError):
    """A failure that the user's input did not cause: a network, a disk, a damaged file (exit status 1)."""


class UsageError(DidiError, ValueError):
    """Invalid input: an argument, a flag or a file cannot be used as given (exit status 2)."""


class Interrupted(DidiError):
    """A training run was asked to stop and has saved its state (exit status 130)."""
