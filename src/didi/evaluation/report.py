"""Evaluation rows told: ``metrics.json``, a Markdown table, a figure; a perplexity never without its entropy."""

import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from didi.evaluation.figure import perplexity_figure
from didi.evaluation.frontier import Interval
from didi.evaluation.row import EvaluationRow, machine_name, measure, varying_fields

__all__ = [
    "EvaluationRow",
    "machine_name",
    "markdown_table",
    "measure",
    "perplexity_figure",
    "write_metrics",
    "write_report",
]

# How a footnote words the settings that all rows share; a setting that differs between rows becomes a column instead.
SETTINGS = {
    "seed": "seed {}",
    "precision": "sampling in {}",
    "temperature": "temperature {:g}",
    "top_p": "top-p {:g}",
    "grid": "{} time grid",
    "num_samples": "{} samples",
    "judge": "judge {}",
    "machine": "{}",
}


def write_metrics(rows: Sequence[EvaluationRow], folder: Path) -> Path:
    """Write ``metrics.json``, whole or not at all: a list of rows, with null for what is not finite."""
    records = [{key: finite(value) for key, value in asdict(row).items()} for row in rows]
    return write_text(
        folder / "metrics.json", json.dumps(records, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    )


def markdown_table(rows: Sequence[EvaluationRow], *, recipe: str = "") -> str:
    """The rows as a Markdown table, over a footnote with recipe, seed, precision, samples, judge and machine."""
    varying = varying_fields(rows, tuple(SETTINGS))
    by_sampler = {row.sampler: row.settings for row in rows}
    if any(row.settings != by_sampler[row.sampler] for row in rows):
        varying.append("settings")
        by_sampler = {}
    header = ["role", "sampler", "NFE", "passes", "disc. passes", "perplexity [95% CI]", "mean-sample ppl"]
    header += [
        "entropy [95% CI]",
        "corpus entropy",
        "bigram entropy",
        "distinct-4",
        "s / sequence",
        "tokens / s",
        "NELBO or NLL",
    ]
    header += [name.replace("_", " ") for name in varying] + (["note"] if any(row.note for row in rows) else [])
    body = [_cells(row, varying)[: len(header)] for row in rows]
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    num_left = 2  # role and sampler; figures to the right, so that their digits stand under each other
    lines = [
        [
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [header, *body]
    ]
    lines.insert(1, ["-" * width if i < num_left else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    shared = [text.format(getattr(rows[0], name)) for name, text in SETTINGS.items() if rows and name not in varying]
    shared += [f"{sampler}: {settings}" for sampler, settings in by_sampler.items() if settings]
    footnote = "; ".join(([f"recipe {recipe}"] if recipe else []) + [said for said in shared if said])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{table}\n\n{footnote[:1].upper()}{footnote[1:]}. Perplexity is exp(total NLL / total judge tokens) over "
        "all samples; entropies are in nats; the NELBO, an upper bound, or an "
        "autoregressive model's exact NLL is in nats per held-out token; "
        "intervals are bootstrapped over sequences. Compare perplexities only at "
        "like entropy.\n"
    )


def write_report(
    rows: Sequence[EvaluationRow], folder: Path, *, title: str, samples: Sequence[Sequence[str]], recipe: str = ""
) -> Path:
    """Write ``report.md`` (table, figure, example texts of each row) and its figure ``perplexity.png``.

    Args:
        rows: what was measured.
        folder: made if it does not exist.
        title: heading of the report.
        samples: for each row, in the same order, a list of example texts, which may be empty.
        recipe: name of the run that made the model.
    """
    parts = [f"# {title}\n", markdown_table(rows, recipe=recipe)]
    parts.append(f"![Perplexity and entropy against NFE]({perplexity_figure(rows, folder / 'perplexity.png').name})\n")
    for row, texts in zip(rows, samples, strict=True):
        heading = f"{row.role}, {row.sampler}, {row.nfe} NFE" if row.nfe else row.role
        parts += [f"## {heading}\n", *map(_quoted, texts)] if texts else []
    return write_text(folder / "report.md", "\n".join(parts))


def _cells(row: EvaluationRow, varying: Sequence[str]) -> list[str]:
    """A row of the table; a dash for what is not finite."""

    def number(value: float, spec: str) -> str:
        return format(value, spec) if math.isfinite(value) else "–"

    def interval(value: float, ends: Interval, spec: str) -> str:
        return f"{number(value, spec)} [{number(ends[0], spec)}, {number(ends[1], spec)}]"

    decimals = ".2f" if row.gen_ppl < 20 else ".1f"
    return [
        row.role,
        row.sampler,
        str(row.nfe) if row.nfe else "–",
        number(row.student_passes, ".4g"),
        number(row.discriminator_passes, ".4g"),
        interval(row.gen_ppl, row.gen_ppl_ci, decimals),
        number(row.gen_ppl_mean_sample, decimals),
        interval(row.entropy, row.entropy_ci, ".2f"),
        number(row.corpus_entropy, ".2f"),
        number(row.bigram_entropy, ".2f"),
        number(row.distinct_4, ".3f"),
        number(row.seconds_per_sequence, ".3g"),
        number(row.tokens_per_second, ",.0f"),
        number(row.nelbo, ".3f"),
        *(str(getattr(row, name)) for name in varying),
        row.note.replace("|", "\\|"),
    ]


def finite(value: Any) -> Any:
    """The value as JSON can hold it: null for NaN and infinities, also within an interval."""
    if isinstance(value, tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _quoted(text: str) -> str:
    """A text as a Markdown code block of at most 100 columns, with a fence that nothing in the text can close."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 100) or [""]]
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return "\n".join([f"{fence}text", *lines, f"{fence}\n"])


def write_text(path: Path, content: str) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
    return path
