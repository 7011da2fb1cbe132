"""Files of an evaluation: ``metrics.json``, ``samples.jsonl``, a Markdown report with tables and figures."""

import base64
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from didi.errors import DidiError, UsageError, from_checkout
from didi.evaluation.figure import frontier_figure, perplexity_figure
from didi.evaluation.frontier import Interval
from didi.evaluation.paired import comparison_table
from didi.evaluation.perplexity import Scores
from didi.evaluation.row import WORDS, EvaluationRow, SampleSet, finite, varying_fields
from didi.evaluation.sweeps import equal_entropy_table
from didi.files import write_atomically
from didi.markdown import aligned_table

RESULTS = ("metrics.json", "samples.jsonl", "report.md", "perplexity.png", "frontier.png")  # files of an evaluation
NUM_EXAMPLES = 2  # texts of each sample set in a report
SET_KEY = ("role", "sampler", "nfe", "temperature", "top_p", "judge")  # fields that identify a set of an evaluation

HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85rem; margin: 1rem 0; }}
th, td {{ padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; }}
th {{ text-align: left; vertical-align: bottom; border-bottom: 2px solid #999; }}
td {{ white-space: nowrap; }}
pre {{ overflow-x: auto; font-size: 0.85rem; color: #444; border-left: 3px solid #ccc; padding-left: 1rem; }}
img {{ max-width: min(100%, 44rem); }}
</style>
{body}
</html>
"""

# Footnote for rows with exact divergences.
EXACT_NOTE = (
    " KL is KL(sampler, data), reverse KL is KL(data, sampler); both and the joint entropy are in nats a sequence. "
    "These and the total variation are sums over all sequences, without sampling error."
)
# Wording, in a footnote, of the settings that all rows share; a setting that differs between rows becomes a column.
SETTINGS = {
    name: (WORDS | {"precision": "sampling in {}", "machine": "{}"})[name]
    for name in ("seed", "precision", "temperature", "top_p", "grid", "num_samples", "judge", "machine")
}


def write_metrics(rows: Sequence[EvaluationRow], folder: Path) -> Path:
    """Write ``metrics.json`` atomically: a list of rows, with null for numbers that are not finite."""
    records = [row.record() for row in rows]
    return write_atomically(
        folder / "metrics.json", json.dumps(records, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    )


def write_samples(sets: Sequence[SampleSet], folder: Path) -> Path:
    """Write ``samples.jsonl`` atomically: every sample of every set, with its NLL and its entropy."""
    lines = []
    for sample_set in sets:
        key, scores = {name: getattr(sample_set.row, name) for name in SET_KEY}, sample_set.scores
        metrics = zip(scores.nll.tolist(), scores.num_tokens.tolist(), sample_set.entropies.tolist(), strict=True)
        for number, (text, (nll, num_tokens, entropy)) in enumerate(zip(sample_set.texts, metrics, strict=True)):
            record = key | {"number": number, "nll": finite(nll), "judge_tokens": num_tokens, "entropy": entropy}
            if sample_set.log_ratios is not None:
                record["log_ratio"] = finite(float(sample_set.log_ratios[number]))
            lines.append(json.dumps(record | {"text": text}, ensure_ascii=False, allow_nan=False) + "\n")
    return write_atomically(folder / "samples.jsonl", "".join(lines))


def read_sets(folder: Path) -> list[SampleSet]:
    """Read the sample sets that ``write_metrics`` and ``write_samples`` wrote.

    Raises:
        UsageError: a file is missing or damaged, or the number of samples differs from ``num_samples`` of a row.
    """
    try:
        records = json.loads((folder / "metrics.json").read_text("utf-8"))
        rows = [EvaluationRow.from_record(record) for record in records]
        # Not splitlines(): a text may contain other characters that end a line, such as U+2028.
        lines = (folder / "samples.jsonl").read_text("utf-8").rstrip("\n").split("\n")
        by_set: dict[tuple[object, ...], list[dict[str, Any]]] = {}
        for sample in map(json.loads, lines):
            by_set.setdefault(tuple(sample[name] for name in SET_KEY), []).append(sample)
        return [_read_set(row, by_set[tuple(getattr(row, name) for name in SET_KEY)]) for row in rows]
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise UsageError(f"{folder} was not written by didi evaluate ({why}): evaluate again") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"its metrics.json or samples.jsonl is damaged, {type(error).__name__}: {error}"
        raise UsageError(f"{folder} was not written by didi evaluate ({why}): evaluate again") from error


def _read_set(row: EvaluationRow, samples: Sequence[Mapping[str, Any]]) -> SampleSet:
    if len(samples) != row.num_samples:
        raise ValueError(f"{row.label(also=('judge',))}: {len(samples)} samples of {row.num_samples}")

    def column(name: str) -> Tensor:
        values = [math.inf if sample[name] is None else sample[name] for sample in samples]
        return torch.tensor(values, dtype=torch.float64)

    scores = Scores(column("nll"), column("judge_tokens").long())
    log_ratios = column("log_ratio") if all("log_ratio" in sample for sample in samples) else None
    return SampleSet(row, [str(sample["text"]) for sample in samples], scores, column("entropy"), log_ratios)


def rows_table(rows: Sequence[EvaluationRow], *, recipe: str = "") -> str:
    """The rows as a Markdown table, followed by a footnote with the recipe and the settings that all rows share.

    A column without any value is left out; a setting that differs between rows has a column.
    """
    varying = varying_fields(rows, tuple(SETTINGS))
    by_sampler = {row.sampler: row.settings for row in rows}
    if any(row.settings != by_sampler[row.sampler] for row in rows):
        varying.append("settings")
        by_sampler = {}
    header = ["role", "sampler", "NFE", "passes", "disc. passes", "perplexity [95% CI]", "mean-sample ppl"]
    header += [
        "entropy [95% CI]",
        "pair KL [95% CI]",
        "pair KL, reverse",
        "triple KL [95% CI]",
        "triple KL, reverse",
        "joint KL [95% CI]",
        "corpus entropy",
        "bigram entropy",
        "distinct-4",
        "repetition-4",
        "self-BLEU",
        "MAUVE",
        "s / sequence",
        "tokens / s",
        "NELBO or NLL",
        "KL",
        "reverse KL",
        "total variation",
        "joint entropy",
    ]
    header += [name.replace("_", " ") for name in varying] + (["note"] if any(row.note for row in rows) else [])
    body = [_cells(row, varying)[: len(header)] for row in rows]
    filled = [i for i in range(len(header)) if i == 0 or not rows or any(line[i] not in ("", "–") for line in body)]
    header, body = [header[i] for i in filled], [[line[i] for i in filled] for line in body]
    shared = [text.format(getattr(rows[0], name)) for name, text in SETTINGS.items() if rows and name not in varying]
    shared += [f"{sampler}: {settings}" for sampler, settings in by_sampler.items() if settings]
    footnote = "; ".join(([f"recipe {recipe}"] if recipe else []) + [text for text in shared if text])
    table = "\n".join(aligned_table(header, body, num_left=1 + ("sampler" in header)))
    is_exact = any(math.isfinite(row.kl) for row in rows)
    return (
        f"{table}\n\n{footnote[:1].upper()}{footnote[1:]}. Perplexity is exp(total NLL / total judge tokens) over "
        "all samples; entropies are in nats; the NELBO, an upper bound, or an "
        "autoregressive model's exact NLL is in nats per held-out token; "
        "intervals are bootstrapped over sequences. Compare perplexities only at "
        f"equal entropy.{EXACT_NOTE if is_exact else ''}{_divergence_note(rows)}\n"
    )


def _divergence_note(rows: Sequence[EvaluationRow]) -> str:
    """Footnote for the columns of estimated divergences; empty if no row has an estimate."""
    note = ""
    if any(math.isfinite(row.pair_kl) for row in rows):
        note += (
            " KL of pairs and triples: adjacent symbols of the samples against the chain (reverse: the chain against "
            "the samples), nats a pair or triple, with jackknife intervals of the sampling error; 0 on average for "
            "samples of the chain. Compare them at equal numbers of samples."
        )
    if references := sorted({row.joint_reference for row in rows if row.joint_reference}):
        note += (
            f" Joint KL: whole sequences against {', '.join(references)}, nats a sequence, by a network fitted to the "
            "samples and scored on held-out ones: a lower bound on average."
        )
    return note


def write_report(sets: Sequence[SampleSet], folder: Path, *, title: str, recipe: str = "") -> Path:
    """Write ``report.md`` and its figures: metrics, paired and equal-entropy comparisons, example texts.

    Args:
        sets: the measured sample sets.
        folder: folder of the files; it is created if it does not exist.
        title: heading of the report.
        recipe: name of the recipe that the model was trained with.
    """
    rows = [sample_set.row for sample_set in sets]
    parts = [f"# {title}\n", rows_table(rows, recipe=recipe)]
    drawn = [row for row in rows if row.nfe or row.role == "data"]  # anchors would stretch every axis
    exact = [row for row in drawn if row.temperature == row.top_p == 1] or drawn or rows
    figure = perplexity_figure(exact, folder / "perplexity.png")
    parts.append(f"![Perplexity and entropy against NFE]({figure.name})\n")
    if (table := comparison_table(sets)) is not None:
        parts += ["## Pair by pair\n", table]
    if (table := equal_entropy_table(rows)) is not None:
        figure = frontier_figure(drawn, folder / "frontier.png")
        parts += ["## At equal entropy\n", table, f"![Perplexity against entropy]({figure.name})\n"]
    shown: set[tuple[object, ...]] = set()
    for sample_set in sets:
        row = sample_set.row
        if (row.role, row.sampler, row.nfe) not in shown:  # once for all judges and temperatures
            parts += [f"## {row.label()}\n", *map(quoted, sample_set.texts[:NUM_EXAMPLES])]
        shown.add((row.role, row.sampler, row.nfe))
    return write_atomically(folder / "report.md", "\n".join(parts))


def write_html(page: Path) -> Path:
    """Write a Markdown page as an HTML file next to it, with the figures embedded.

    Raises:
        DidiError: the package ``markdown`` is not installed.
    """
    try:
        import markdown
    except ImportError as error:
        raise DidiError(f"an HTML report needs the package markdown: {from_checkout('eval')} ({error})") from error
    body = markdown.markdown(page.read_text(encoding="utf-8"), extensions=["tables", "fenced_code"])
    body = re.sub(r'(?<=src=")[\w.-]+\.png(?=")', lambda match: _data_url(page.with_name(match[0])), body)
    title = body.partition("<h1>")[2].partition("</h1>")[0]
    return write_atomically(page.with_suffix(".html"), HTML.format(title=title, body=body))


def _data_url(figure: Path) -> str:
    """A figure as a data URL; its file name if the file does not exist, for example if a sampled text contains it."""
    if not figure.is_file():
        return figure.name
    return f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}"


def _cells(row: EvaluationRow, varying: Sequence[str]) -> list[str]:
    """Cells of a row of the table; a dash stands for a number that was not computed."""

    def number(value: float, spec: str) -> str:
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        return "–" if math.isnan(value) else format(value, f"z{spec}")  # z: no negative zero

    def interval(value: float, ends: Interval, spec: str) -> str:
        if math.isnan(value) or math.isnan(ends[0]):
            return number(value, spec)
        return f"{number(value, spec)} [{number(ends[0], spec)}, {number(ends[1], spec)}]"

    decimals = ".2f" if row.gen_ppl < 20 else ".1f"
    return [
        row.role,
        row.sampler,
        str(row.nfe) if row.nfe else "–",
        number(row.network_passes, ".4g"),
        number(row.discriminator_passes, ".4g"),
        interval(row.gen_ppl, row.gen_ppl_ci, decimals),
        number(row.gen_ppl_mean_sample, decimals),
        interval(row.entropy, row.entropy_ci, ".2f"),
        interval(row.pair_kl, row.pair_kl_ci, ".4f"),
        interval(row.pair_reverse_kl, row.pair_reverse_kl_ci, ".4f"),
        interval(row.triple_kl, row.triple_kl_ci, ".4f"),
        interval(row.triple_reverse_kl, row.triple_reverse_kl_ci, ".4f"),
        interval(row.joint_kl, row.joint_kl_ci, ".2f"),
        number(row.corpus_entropy, ".2f"),
        number(row.bigram_entropy, ".2f"),
        number(row.distinct_4, ".3f"),
        number(row.repetition_4, ".3f"),
        number(row.self_bleu, ".3f"),
        number(row.mauve, ".3f"),
        number(row.seconds_per_sequence, ".3g"),
        number(row.tokens_per_second, ",.0f"),
        number(row.nelbo, ".3f"),
        number(row.kl, ".4f"),
        number(row.reverse_kl, ".4f"),
        number(row.total_variation, ".4f"),
        number(row.joint_entropy, ".3f"),
        *(str(getattr(row, name)) for name in varying),
        row.note.replace("|", "\\|"),
    ]


def quoted(text: str) -> str:
    """A text as a Markdown code block of at most 100 columns, with a longer fence than any run of ` in the text."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 100) or [""]]
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return "\n".join([f"{fence}text", *lines, f"{fence}\n"])
