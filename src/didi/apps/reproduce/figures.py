"""The paper's figures and its table of likelihoods, made from the cells of a study."""

from collections.abc import Sequence
from dataclasses import replace

from didi.apps.reproduce import peers, published
from didi.apps.reproduce.cells import Cell, LikelihoodCell, Run
from didi.apps.reproduce.plan import Plan
from didi.apps.reproduce.study import Study
from didi.evaluation.anchors import ANCHORS
from didi.evaluation.figure import latency_figure, perplexity_figure
from didi.evaluation.machine import machine_name
from didi.evaluation.report import quoted, rows_table
from didi.evaluation.row import EvaluationRow
from didi.evaluation.zero_shot import likelihood_table
from didi.markdown import markdown_table
from didi.models.bundle import Role

BASELINE: Role = "autoregressive"


def table_7_cells(plan: Plan) -> list[LikelihoodCell]:
    """Teacher, student, baseline and peers on corpora that they never saw."""
    return _own_likelihoods(plan) + peers.likelihood_cells(plan.peers, plan.corpora)


def _own_likelihoods(plan: Plan) -> list[LikelihoodCell]:
    networks: dict[Role, Run | str | None] = {
        "teacher": plan.teacher, "student": plan.student, BASELINE: plan.twin,
    }  # fmt: skip
    return [
        LikelihoodCell(bundle, role, corpus)
        for corpus in plan.corpora
        for role, bundle in networks.items()
        if bundle is not None
    ]


def table_7(plan: Plan, study: Study) -> list[str]:
    """Their likelihoods."""
    found = [study.likelihood(cell) for cell in _own_likelihoods(plan)]
    baseline = "" if plan.twin is None else f", baseline {_name(plan.twin)}"
    lines = [likelihood_table(found, model=f"teacher {plan.teacher}{baseline}", machine=machine_name())]
    if plan.peers:
        lines += ["\n### Other teachers\n", *peers.peers_table(plan.peers, plan.corpora, study), ""]
    if plan.scale == "paper":
        body = [[name, *row] for name, row in published.TABLE_7.items()]
        lines += markdown_table(["as published", *published.TABLE_7_CORPORA], body)
    return lines


def _name(bundle: Run | str) -> str:
    """Name of a bundle that is given, or the recipe of one that is made."""
    return bundle if isinstance(bundle, str) else bundle.config.recipe


def _about_baseline(plan: Plan, rows: Sequence[EvaluationRow]) -> list[str]:
    """Which network the baseline is; and the lengths of sequences, where they differ."""
    if plan.twin is None:
        return []
    own = next(row for row in rows if row.role == BASELINE)
    other = next(row for row in rows if row.role == "teacher")
    text = f"The autoregressive baseline is that of `{_name(plan.twin)}`, one pass for each of its {own.nfe} tokens."
    length = round(other.tokens_per_second * other.seconds_per_sequence)
    if length != own.nfe:
        text += (
            f" The sequences of the other networks have {length} tokens: the entropy within a sequence and the "
            "perplexity depend on the length, so compare the baseline with them by Table 7 alone."
        )
    return [f"{text}\n"]


def _as_published(plan: Plan, figure: str) -> list[str]:
    return [f"{published.FIGURES[figure]}\n"] if plan.scale == "paper" else []


def figure_1_cells(plan: Plan) -> list[Cell]:
    """Teacher, student with and without guidance, baseline, data and anchors; and the peers."""
    return _own_samples(plan) + [cell for cells in _peer_cells(plan).values() for cell in cells]


def _peer_cells(plan: Plan) -> dict[str, list[Cell]]:
    return peers.sample_cells(plan.peers, (*plan.nfes, *plan.more_teacher_nfes)[::2])  # enough for a curve


def _own_samples(plan: Plan) -> list[Cell]:
    student = plan.student
    cells = plan.teacher_cells
    cells += [Cell(student, "student", sampler, nfe) for sampler in ("ancestral", "guided") for nfe in plan.nfes]
    return cells + _baseline_cells(plan)


def _baseline_cells(plan: Plan) -> list[Cell]:
    """The samples of the baseline, if there is one; their number of moves is the length, whatever is asked."""
    return [] if plan.twin is None else [Cell(plan.twin, BASELINE, nfe=1)]


def figure_1(plan: Plan, study: Study) -> list[str]:
    """Perplexity against passes, the table, and the first text of each set."""
    cells = _own_samples(plan)
    rows = [study.row(cell) for cell in cells]
    figure = perplexity_figure([row for row in rows if row.role not in ANCHORS], study.folder / "figure1.png")
    lines = [f"![Perplexity and entropy against NFE]({figure.name})\n", *_as_published(plan, "figure1")]
    lines += _about_baseline(plan, rows)
    lines.append(rows_table(rows, recipe=plan.recipe.recipe))
    for cell, row in zip(cells, rows, strict=True):
        lines.append(f"**{row.label()}** (perplexity {row.gen_ppl:.1f}, entropy {row.entropy:.2f})\n")
        lines.append(quoted(study.record(cell)["texts"][0]))
    return lines + _peers_figure(plan, study, [row for row in rows if row.role == "data"])


def _peers_figure(plan: Plan, study: Study, data: Sequence[EvaluationRow]) -> list[str]:
    """The peers against passes, beside held-out data."""
    if not plan.peers:
        return []
    by_name = _peer_cells(plan)
    rows = [replace(study.row(cell), role=name) for name, cells in by_name.items() for cell in cells]
    figure = perplexity_figure([*data, *rows], study.folder / "figure1-teachers.png")
    return [
        "\n### Other teachers\n",
        *peers.about(plan.peers),
        f"![Perplexity and entropy of other teachers against NFE]({figure.name})\n",
        rows_table(rows, recipe=plan.recipe.recipe),
    ]


def figure_3_cells(plan: Plan) -> list[Cell]:
    """Those of Figure 1, without the peers."""
    return _own_samples(plan)


def figure_3(plan: Plan, study: Study) -> list[str]:
    """Perplexity against seconds a sequence, as they were while other cells were measured beside."""
    cells = figure_3_cells(plan)
    rows = [study.row(cell) for cell in cells]
    workers = max(study.record(cell)["workers"] for cell in cells)
    beside = f"{workers} processes measured" if workers > 1 else "no other process measured"
    figure = latency_figure([row for row in rows if row.role not in ANCHORS], study.folder / "figure3.png")
    return [
        f"![Perplexity against seconds per sequence]({figure.name})\n",
        *_as_published(plan, "figure3"),
        *_about_baseline(plan, rows),
        f"Times are of {study.sampling.num_samples} sequences in batches of {study.sampling.batch_size} while "
        f"{beside}; for times taken side by side there is `didi bench`.",
    ]


def figure_4_cells(plan: Plan) -> list[Cell]:
    """Teachers of both sizes and their students, and the baseline."""
    cells = plan.teacher_cells + [Cell(plan.first_run, "student", nfe=nfe) for nfe in plan.nfes]
    if plan.larger is not None:
        cells += [Cell(plan.larger, "teacher", nfe=nfe) for nfe in plan.nfes]
        cells += [Cell(_larger_student(plan), "student", nfe=nfe) for nfe in plan.nfes]
    return cells + _baseline_cells(plan)


def _larger_student(plan: Plan) -> Run:
    """Distilled from the larger teacher with the same settings."""
    if isinstance(plan.larger, Run):
        return Run(replace(plan.recipe, seed=plan.seeds[0]), teacher=plan.larger)
    return Run(replace(plan.recipe, teacher=plan.larger or "", seed=plan.seeds[0]))


def figure_4(plan: Plan, study: Study) -> list[str]:
    """Both sizes against passes."""
    if plan.larger is None:
        return ["No larger teacher was given: name one with --larger."]
    rows = []
    for cell in figure_4_cells(plan):
        row = study.row(cell)
        is_larger = cell.role != BASELINE and cell.bundle in (plan.larger, _larger_student(plan))
        if row.role not in ANCHORS:
            rows.append(replace(row, role=f"{row.role}, larger") if is_larger else row)
    teachers = [Cell(one, "teacher", nfe=plan.nfes[0]) for one in (plan.teacher, plan.larger)]
    sizes = [study.record(cell)["num_parameters"] for cell in teachers]
    figure = perplexity_figure(rows, study.folder / "figure4.png")
    return [
        f"![Perplexity and entropy against NFE]({figure.name})\n",
        *_as_published(plan, "figure4"),
        *_about_baseline(plan, rows),
        f"Teachers of {sizes[0]:,} and {sizes[1]:,} parameters, trained and distilled with the same settings.\n",
        rows_table(rows, recipe=plan.recipe.recipe),
    ]
