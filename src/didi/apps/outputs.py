"""What a command may write over in ``--out``."""

from collections.abc import Sequence
from pathlib import Path

from didi.errors import UsageError


def refuse_existing(
    folder: Path | None, names: Sequence[str], *, overwrite: bool, what: str = "earlier results"
) -> None:
    """Refuse a folder that holds files which a command would replace, before any work is done.

    Args:
        folder: ``--out``; None where the command writes no files.
        names: Files that the command may write in it.
        overwrite: Whether ``--overwrite`` was given.
        what: What the files are, for the error message.

    Raises:
        UsageError: The folder holds some of them.
    """
    found = [name for name in names if folder is not None and (folder / name).exists()]
    if found and not overwrite:
        raise UsageError(
            f"--out takes a folder without {what}; {folder} holds {', '.join(found)}: add --overwrite to replace "
            f"{'it' if len(found) == 1 else 'them'}, or choose another folder"
        )


def refuse_existing_file(flag: str, path: Path | None, *, overwrite: bool) -> None:
    """Refuse a file that a command would replace, before any work is done.

    Args:
        flag: The flag that names the file, such as ``--html``.
        path: The file; None where the command writes none.
        overwrite: Whether ``--overwrite`` was given.

    Raises:
        UsageError: The file exists.
    """
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"{flag} takes a new file; {path} exists: add --overwrite to replace it, or choose another")
