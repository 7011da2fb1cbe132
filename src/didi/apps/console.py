"""Results on standard output: a console that reports a closed pipe, and a table of evaluation rows."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from didi.evaluation.row import EvaluationRow


class ResultConsole(Console):
    """Standard output; if its reader closes the pipe, the error reaches ``terminal.run``, which reports it."""

    def on_broken_pipe(self) -> None:
        """Raise an error; by default rich exits without a message."""
        raise BrokenPipeError


def print_rows(rows: Sequence[EvaluationRow], *, title: str, console: Console) -> None:
    """Print evaluation rows as a table that fits a terminal of 80 columns; the report has all columns.

    Long labels are wrapped. They contain the sampler only if the rows have different samplers.
    """
    is_guided = any(row.discriminator_passes for row in rows)
    is_exact = any(math.isfinite(row.kl) for row in rows)
    has_samplers = len({row.sampler for row in rows if row.nfe}) > 1
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("model", overflow="fold")
    for name in ("NFE", "disc." if is_guided else "passes", "perplexity", "entropy", *["KL"] * is_exact, "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        label = row.label(omit=("nfe",) if has_samplers else ("sampler", "nfe"))
        passes = row.discriminator_passes if is_guided else row.network_passes
        drawn = [str(row.nfe), f"{passes:.1f}"] if row.nfe else ["-", "-"]
        decimals = ".0f" if row.gen_ppl >= 100 else ".1f" if row.gen_ppl >= 20 else ".2f"
        measured = [_with_interval(row.gen_ppl, row.gen_ppl_ci, decimals)]
        measured += [_with_interval(row.entropy, row.entropy_ci, ".2f")]
        measured += [f"{row.kl:.4f}" if math.isfinite(row.kl) else "-"] if is_exact else []
        speed = f"{row.tokens_per_second:,.0f}" if row.nfe else "-"
        table.add_row(label, *drawn, *measured, speed)
    console.print(table)


def _with_interval(value: float, ends: tuple[float, float], spec: str) -> str:
    return f"{value:{spec}} [{ends[0]:{spec}}, {ends[1]:{spec}}]"
