"""Zero-shot likelihoods: networks scored on corpora that they were not trained on, in their own tokens (Table 7)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from didi.data.blocks import block_layout_of
from didi.data.markov import CHAINS
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
    """Likelihood of one corpus under one network.

    Attributes:
        data: name of the corpus.
        role: role of the network.
        characters: number of characters of the scored texts.
        likelihood: the likelihood of the scored sequences.
        is_detokenized: whether the texts were detokenised by the rules of ``data.detokenize``.
        block_layout: layout of the blocks into which the texts were wrapped; see ``data.blocks``.
    """

    data: str
    role: str
    characters: int
    likelihood: Likelihood
    is_detokenized: bool = False
    block_layout: str = "stream"

    @property
    def bits_per_character(self) -> float:
        """Bits per character; unlike a perplexity per token, comparable between tokenizers."""
        return self.likelihood.nats * self.likelihood.num_tokens / self.characters / math.log(2)

    def record(self) -> dict[str, Any]:
        """All metrics as JSON values."""
        perplexities = {"perplexity": self.likelihood.perplexity, "perplexity_ci": self.likelihood.perplexity_ci}
        return (
            {"data": self.data, "role": self.role, "bits_per_character": self.bits_per_character}
            | perplexities
            | asdict(self.likelihood)
            | {"characters": self.characters}
            | {"is_detokenized": self.is_detokenized, "block_layout": self.block_layout}
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "LikelihoodRow":
        """The row of a record from ``record()``."""
        values = {each.name: record[each.name] for each in fields(Likelihood)}
        values["nats_ci"] = tuple(values["nats_ci"])
        # Records of older versions lack these two fields.
        preparation = record.get("is_detokenized", False), record.get("block_layout", "stream")
        return cls(record["data"], record["role"], record["characters"], Likelihood(**values), *preparation)


def rows_of(bundle: Bundle, corpus: str) -> Int[Tensor, "n l"]:
    """Rows of a corpus in the tokens of a bundle: its test split if the bundle was trained on it, else all of it.

    Documents are joined, each followed by the end-of-text token, and cut into blocks of the network's length, in the
    block layout that the bundle records.

    Raises:
        UsageError: the corpus is shorter than a block, or the bundle has no tokenizer.
    """
    length = bundle.network().length
    if corpus in (*CHAINS, bundle.provenance.get("corpus")):
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
    """Likelihood of a random choice of rows of a corpus; networks of equal tokenizer and length get the same rows.

    Args:
        bundle: the model.
        corpus: see ``rows_of``.
        role: role of the network.
        num_sequences: number of rows to score; all rows if the corpus has fewer.
        num_draws: number of random masks of each sequence.
        batch_size: number of masked sequences in one pass.
        seed: random seed of the choice and of the masks.

    Raises:
        UsageError: see ``rows_of``; or the bundle has no such network.
    """
    rows = rows_of(bundle, corpus)
    order = torch.randperm(len(rows), generator=named_generator(seed, "data"))
    chosen = rows[order[:num_sequences]]
    network = bundle.network(role)
    result = likelihood(network, bundle.process, chosen, num_draws=num_draws, batch_size=batch_size, seed=seed)
    characters = sum(len(text) for text in decode(bundle, chosen))
    return LikelihoodRow(
        corpus,
        role,
        characters,
        result,
        is_detokenized=is_detokenized(corpus),
        block_layout=block_layout_of(bundle.provenance),
    )


def likelihood_table(rows: Sequence[LikelihoodRow], *, model: str, machine: str) -> str:
    """The rows as a Markdown table: a line for each corpus, two columns for each network."""
    roles = list(dict.fromkeys(row.role for row in rows))
    bound = {row.role: "" if row.likelihood.is_exact else "≤ " for row in rows}
    header = ["corpus", *(name for role in roles for name in (f"{role}: perplexity [95% CI]", "bits / character"))]
    body = []
    for data in dict.fromkeys(row.data for row in rows):
        cells: list[str] = []
        for row in (row for row in rows if row.data == data):
            low, high = row.likelihood.perplexity_ci
            cells.append(f"{bound[row.role]}{row.likelihood.perplexity:.1f} [{low:.1f}, {high:.1f}]")
            cells.append(f"{bound[row.role]}{row.bits_per_character:.3f}")
        body.append([data, *cells])
    lines = markdown_table(header, body)
    likelihoods = [row.likelihood for row in rows]
    layouts = _by_role(rows, lambda row: row.block_layout)
    lengths = _by_role(rows, lambda row: str(row.likelihood.num_tokens // row.likelihood.num_sequences))
    facts = [f"\n{model}", f"blocks of {lengths} tokens"]
    facts.append(f"at most {max(each.num_sequences for each in likelihoods)} blocks of a corpus")
    if not all(each.is_exact for each in likelihoods):
        noise = max(each.noise for each in likelihoods)
        num_draws = max(each.num_draws for each in likelihoods)
        facts.append(f"{num_draws} random masks per sequence (standard error at most {noise:.3f} nats per token)")
    detokenised = list(dict.fromkeys(row.data for row in rows if row.is_detokenized))
    rules = f"Detokenised by the rules of MDLM: {', '.join(detokenised)}. " if detokenised else ""
    lines.append(
        f"{'; '.join([*facts, machine])}. ≤: an upper bound. {rules}Texts are wrapped into blocks, layout "
        f"{layouts}. Perplexities are per token of the model's own tokenizer; intervals are bootstrapped "
        "over sequences."
    )
    return "\n".join(lines) + "\n"


def _by_role(rows: Sequence[LikelihoodRow], value: Callable[[LikelihoodRow], str]) -> str:
    """The value of the first row, followed in brackets by the values of the roles that differ from it."""
    by_role = {row.role: value(row) for row in reversed(rows)}
    first = by_role[rows[0].role]
    others = [f"{role}: {each}" for role, each in reversed(by_role.items()) if each != first]
    return f"{first} ({', '.join(others)})" if others else first
