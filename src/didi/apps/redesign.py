"""Prompts of ``didi generate --proteins``: proteins of a FASTA file of which some residues are sampled again."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from didi.apps.prompt_files import STANDARD_INPUT, read_text
from didi.data.fasta import Protein, fasta_records, read_fasta
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.networks import DenoiserNetwork
from didi.sampling.prompt import checked_lengths
from didi.sampling.prompts import Prompt
from didi.sampling.redesign import redesign_prompt


@dataclass(frozen=True)
class Templates:
    """Proteins to redesign.

    Attributes:
        names: first word of each title; ``record-1`` and so on where a title is empty.
        prompts: a prompt for each, of the same number and order.
    """

    names: Sequence[str]
    prompts: Sequence[Prompt]

    def check_lengths(self, network: DenoiserNetwork | AutoregressiveLM) -> None:
        """Check that the samples fit in the context of a network.

        Raises:
            UsageError: a protein is too long; the message names it.
        """
        for name, prompt in zip(self.names, self.prompts, strict=True):
            with _named(name):
                checked_lengths(network, prompt.length)


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
            raise UsageError("--redesign and --keep name regions of the proteins of --proteins: add --proteins FILE")
        return None
    others = {"--prompts": command.prompts, "--prefix": command.prefix, "--infill": command.infill}
    if given := [flag for flag, value in ({**others, "--length": command.length or None}).items() if value is not None]:
        raise UsageError(f"--proteins gives the prompts and the lengths; leave {' and '.join(given)} out")
    records = _records(command.proteins)
    names = [(record.title.split() or [f"record-{number}"])[0] for number, record in enumerate(records, start=1)]
    prompts = []
    for name, record in zip(names, records, strict=True):
        with _named(name):
            prompts.append(redesign_prompt(record.residues, redesign=command.redesign, keep=command.keep))
    return Templates(names, prompts)


def _records(name: str) -> list[Protein]:
    """Proteins of a FASTA file, or of standard input if ``name`` is ``-``.

    Raises:
        UsageError: the file or standard input cannot be read, or is not a FASTA file.
    """
    text = read_text(name, "--proteins") if name == STANDARD_INPUT else None
    try:
        return list(
            read_fasta(Path(name)) if text is None else fasta_records(io.StringIO(text, newline=None), "standard input")
        )
    except UsageError as error:
        raise UsageError(f"--proteins: {error}") from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the protein in errors."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"protein {name}: {error}") from error
