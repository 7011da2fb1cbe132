"""Checks that a command does not replace existing files."""

from collections.abc import Sequence
from pathlib import Path

from didi.errors import UsageError


def refuse_existing(
    folder: Path | None, names: Sequence[str], *, overwrite: bool, what: str = "earlier results"
) -> None:
    """Refuse, before any work, a folder with files that a command would replace.

    Args:
        folder: ``--out``; None if the command writes no files.
        names: Names of the files that the command may write.
        overwrite: Whether ``--overwrite`` was given.
        what: Description of the files, for the error message.

    Raises:
        UsageError: The folder has some of the files, and ``overwrite`` is False.
    """
    existing = [name for name in names if folder is not None and (folder / name).exists()]
    if existing and not overwrite:
        raise UsageError(
            f"--out takes a folder without {what}; {folder} holds {', '.join(existing)}: add --overwrite to replace "
            f"{'it' if len(existing) == 1 else 'them'}, or choose another folder"
        )


def refuse_existing_file(flag: str, path: Path | None, *, overwrite: bool) -> None:
    """Refuse, before any work, a file that a command would replace.

    Args:
        flag: The flag of the file, such as ``--html``.
        path: The file; None if the command does not write it.
        overwrite: Whether ``--overwrite`` was given.

    Raises:
        UsageError: The file exists, and ``overwrite`` is False.
    """
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"{flag} takes a new file; {path} exists: add --overwrite to replace it, or choose another")
