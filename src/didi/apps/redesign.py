"""Prompts of ``didi generate --proteins``: proteins of a FASTA file that are sampled again in part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from didi.data.fasta import read_fasta
from didi.errors import UsageError
from didi.sampling.prompts import Prompt
from didi.sampling.redesign import redesign_prompt


@dataclass(frozen=True)
class Templates:
    """Proteins to redesign.

    Attributes:
        names: first word of each title; ``record-1`` and so on where a title is empty.
        prompts: a prompt for each.
    """

    names: Sequence[str]
    prompts: Sequence[Prompt]


def templates_of(command: Any) -> Templates | None:
    """The proteins of ``--proteins`` with the regions of ``--redesign`` or ``--keep``; None without ``--proteins``.

    Args:
        command: flags of ``didi generate``.

    Raises:
        UsageError: flags contradict each other, the file cannot be read, or a region does not fit a protein, which the
            message names.
    """
    if command.proteins is None:
        if command.redesign or command.keep:
            raise UsageError("--redesign and --keep name regions of the proteins of a file; give --proteins FILE")
        return None
    others = {"--prompts": command.prompts, "--prefix": command.prefix, "--infill": command.infill}
    if given := [flag for flag, value in ({**others, "--length": command.length or None}).items() if value is not None]:
        raise UsageError(f"--proteins gives the prompts and the lengths; leave {' and '.join(given)} out")
    records = list(read_fasta(Path(command.proteins)))
    names = [(one.title.split() or [f"record-{number}"])[0] for number, one in enumerate(records, start=1)]
    prompts = []
    for name, record in zip(names, records, strict=True):
        try:
            prompts.append(redesign_prompt(record.residues, redesign=command.redesign, keep=command.keep))
        except UsageError as error:
            raise UsageError(f"protein {name}: {error}") from error
    return Templates(names, prompts)
