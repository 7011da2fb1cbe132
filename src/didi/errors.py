"""The two ways a command ends badly, each told in one clear line: the rule, the value, the fix."""


class DidiError(RuntimeError):
    """Something outside the user's words failed: a network, a disk, a damaged file (exit status 1)."""


class UsageError(DidiError, ValueError):
    """What the user asked for is not possible as asked (exit status 2)."""
