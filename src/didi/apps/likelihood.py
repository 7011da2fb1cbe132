"""``didi likelihood``: likelihood of held-out and zero-shot corpora under the networks of a bundle (Table 7)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from didi.apps.outputs import refuse_existing
from didi.apps.terminal import parse
from didi.arguments import whole_number
from didi.data.markov import CHAINS
from didi.data.zero_shot import unseen_stand_ins
from didi.evaluation.machine import machine_name
from didi.evaluation.zero_shot import LikelihoodRow, likelihood_table, score_corpus
from didi.files import json_text, output_folder, write_atomically
from didi.models.bundle import Role, load
from didi.process_group import default_device


@dataclass(frozen=True)
class LikelihoodCommand:
    """Perplexity on held-out and zero-shot corpora: from the NELBO for diffusion, exact for autoregressive networks."""

    model: str
    """A bundled name, a bundle folder or a Hub repository."""
    data: tuple[str, ...] = ()
    """Corpora: the name of the model's training corpus (its test split is scored); from the Hub, prepared as by MDLM,
    ptb wikitext lm1b lambada ag-news pubmed arxiv; stand-ins for these from package registries, brown-news wiki
    news-sentences brown-fiction news-titles brown-science brown-maths; files; Hub data sets. By default the training
    corpus and the stand-ins that share no text with it."""
    role: tuple[Role, ...] = ()
    """student, teacher, autoregressive, or several; by default all networks of the bundle."""
    num_draws: int = 16
    """Random masks of each sequence, over which its NELBO is averaged."""
    num_sequences: int = 256
    """Randomly chosen sequences of each corpus; all sequences of a smaller corpus."""
    batch_size: int = 32
    """Masked sequences in one pass; changes speed and memory only."""
    seed: int = 0
    """Random seed of the choice of sequences and of the masks."""
    out: Path | None = None
    """Folder for likelihood.json and likelihood.md."""
    overwrite: bool = False
    """Replace these two files in --out."""


def run_likelihood(args: Sequence[str]) -> None:
    """Run ``didi likelihood`` with the arguments after the command's name."""
    command = parse(LikelihoodCommand, args, prog="didi likelihood")
    for name in ("num_draws", "num_sequences", "batch_size"):
        whole_number(f"--{name.replace('_', '-')}", getattr(command, name), low=1)
    refuse_existing(command.out, ("likelihood.json", "likelihood.md"), overwrite=command.overwrite)
    with output_folder(command.out):
        _score(command)


def _score(command: LikelihoodCommand) -> None:
    """Score all corpora; write and print the table."""
    bundle = load(command.model).to(default_device())
    roles = command.role or tuple(
        role for role in ("teacher", "student", "autoregressive") if getattr(bundle, role) is not None
    )
    for role in roles:
        bundle.network(role)  # refuses a missing network before any work
    trained_on = bundle.provenance.get("corpus")
    stand_ins = () if trained_on in CHAINS else unseen_stand_ins(trained_on)
    corpora = command.data or (*([str(trained_on)] if trained_on else []), *stand_ins)
    rows: list[LikelihoodRow] = []
    for corpus in dict.fromkeys(corpora):
        for role in roles:
            row = score_corpus(
                bundle,
                corpus,
                role,
                num_sequences=command.num_sequences,
                num_draws=command.num_draws,
                batch_size=command.batch_size,
                seed=command.seed,
            )
            rows.append(row)
            print(f"{corpus}, {role}: {row.likelihood.nats:.3f} nats a token", file=sys.stderr)
    machine = machine_name(default_device())
    table = likelihood_table(rows, model=bundle.name, machine=machine)
    if command.out is not None:  # before the table is printed, which fails if the pipe is closed
        records = [row.record() for row in rows]
        record = {"model": bundle.name, "seed": command.seed, "machine": machine, "rows": records}
        write_atomically(command.out / "likelihood.json", json_text(record, indent=1) + "\n")
        write_atomically(command.out / "likelihood.md", table)
    print(table, end="")
    if command.out is not None:
        print(command.out / "likelihood.md")
