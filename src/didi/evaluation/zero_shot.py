"""Networks scored on corpora that they never saw (Table 7), in their own tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from didi.data.blocks import block_layout_of
from didi.data.markov import WORLDS
from didi.data.source import source_for
from didi.data.text import pack
from didi.data.zero_shot import is_detokenized, zero_shot_documents
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.evaluation.likelihood import Likelihood, likelihood
from didi.markdown import markdown_table
from didi.models.bundle import Bundle, Role
from didi.sampling.prompt import decode


@dataclass(frozen=True)
class LikelihoodRow:
    """One network on one corpus.

    Attributes:
        data: the corpus.
        role: the network.
        characters: of the texts that were scored.
        found: its likelihood.
        is_detokenized: whether the texts were detokenised by the rules of ``data.detokenize``.
        block_layout: of the rows, into which the texts were wrapped; see ``data.blocks``.
    """

    data: str
    role: str
    characters: int
    found: Likelihood
    is_detokenized: bool = False
    block_layout: str = "stream"

    @property
    def bits_per_character(self) -> float:
        """Comparable between tokenizers, as a perplexity per token is not."""
        return self.found.nats * self.found.num_tokens / self.characters / math.log(2)

    def record(self) -> dict[str, Any]:
        """All figures, for JSON."""
        figures = {"perplexity": self.found.perplexity, "perplexity_ci": self.found.perplexity_ci}
        return (
            {"data": self.data, "role": self.role, "bits_per_character": self.bits_per_character}
            | figures
            | asdict(self.found)
            | {"characters": self.characters}
            | {"is_detokenized": self.is_detokenized, "block_layout": self.block_layout}
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "LikelihoodRow":
        """The row that ``record()`` made."""
        found = {each.name: record[each.name] for each in fields(Likelihood)}
        found["nats_ci"] = tuple(found["nats_ci"])
        prepared = record.get("is_detokenized", False), record.get("block_layout", "stream")  # later than the others
        return cls(record["data"], record["role"], record["characters"], Likelihood(**found), *prepared)


def rows_of(bundle: Bundle, corpus: str) -> Int[Tensor, "n l"]:
    """Rows of a corpus in a bundle's tokens: of the test split where the bundle was trained on it, else of all of it.

    Documents are joined, each ended with the end-of-text token, and cut into blocks of the network's length, in the
    block layout that the bundle records.

    Raises:
        UsageError: it fills no block, or the bundle has no tokenizer.
    """
    length = bundle.network().length
    if corpus in (*WORLDS, bundle.provenance.get("corpus")):
        return source_for(bundle, corpus).test
    if not isinstance(bundle.tokenizer, Tokenizer):
        raise UsageError(f"text is scored in a bundle's own tokens; {bundle.name} has no tokenizer")
    rows = pack(zero_shot_documents(corpus), bundle.tokenizer, length, block_layout_of(bundle.provenance))
    if not len(rows):
        raise UsageError(f"a corpus fills a block of {length} tokens or more; {corpus!r} does not")
    return rows


def score_corpus(
    bundle: Bundle,
    corpus: str,
    role: Role,
    *,
    num_sequences: int,
    num_draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
) -> LikelihoodRow:
    """One network on a random choice of a corpus's rows, the same for every network of one tokenizer and length.

    Args:
        bundle: holds the network.
        corpus: as for ``rows_of``.
        role: which network.
        num_sequences: scored, or all where the corpus has fewer.
        num_draws: masks of each sequence.
        batch_size: masked sequences in one pass.
        seed: of the choice and of the masks.

    Raises:
        UsageError: as ``rows_of``, or the bundle has no such network.
    """
    rows = rows_of(bundle, corpus)
    order = torch.randperm(len(rows), generator=named_generator(seed, "data"))
    chosen = rows[order[:num_sequences]]
    network = bundle.network(role)
    found = likelihood(network, bundle.process, chosen, num_draws=num_draws, batch_size=batch_size, seed=seed)
    characters = sum(len(text) for text in decode(bundle, chosen))
    return LikelihoodRow(
        corpus,
        role,
        characters,
        found,
        is_detokenized=is_detokenized(corpus),
        block_layout=block_layout_of(bundle.provenance),
    )


def likelihood_table(rows: Sequence[LikelihoodRow], *, model: str, machine: str) -> str:
    """The rows as a Markdown table: a line for each corpus, two columns for each network."""
    roles = list(dict.fromkeys(row.role for row in rows))
    bound = {row.role: "" if row.found.is_exact else "≤ " for row in rows}
    header = ["corpus", *(name for role in roles for name in (f"{role}: perplexity [95% CI]", "bits / character"))]
    body = []
    for data in dict.fromkeys(row.data for row in rows):
        cells: list[str] = []
        for row in (row for row in rows if row.data == data):
            low, high = row.found.perplexity_ci
            cells.append(f"{bound[row.role]}{row.found.perplexity:.1f} [{low:.1f}, {high:.1f}]")
            cells.append(f"{bound[row.role]}{row.bits_per_character:.3f}")
        body.append([data, *cells])
    lines = markdown_table(header, body)
    each = [row.found for row in rows]
    layouts = _by_role(rows, lambda row: row.block_layout)
    lengths = _by_role(rows, lambda row: str(row.found.num_tokens // row.found.num_sequences))
    about = [f"\n{model}", f"blocks of {lengths} tokens"]
    about.append(f"at most {max(found.num_sequences for found in each)} of a corpus")
    if not all(found.is_exact for found in each):
        noise = max(found.noise for found in each)
        about.append(
            f"{max(found.num_draws for found in each)} masks a sequence, of noise at most {noise:.3f} nats a token"
        )
    detokenised = list(dict.fromkeys(row.data for row in rows if row.is_detokenized))
    rules = f"Detokenised by the rules of MDLM: {', '.join(detokenised)}. " if detokenised else ""
    lines.append(
        f"{'; '.join([*about, machine])}. ≤: an upper bound. {rules}Texts are wrapped into blocks, layout "
        f"{layouts}. Perplexities are per token of the model's own tokenizer; intervals are bootstrapped "
        "over sequences."
    )
    return "\n".join(lines) + "\n"


def _by_role(rows: Sequence[LikelihoodRow], value: Callable[[LikelihoodRow], str]) -> str:
    """What all rows share; where they differ, that of the first, and in brackets those of the roles that differ."""
    found = {row.role: value(row) for row in reversed(rows)}
    first = found[rows[0].role]
    others = [f"{role}: {one}" for role, one in reversed(found.items()) if one != first]
    return f"{first} ({', '.join(others)})" if others else first
