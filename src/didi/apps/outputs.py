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
