"""The paper's figures and its table of likelihoods, from the cells of a study."""

from collections.abc import Sequence
from dataclasses import replace

from didi.apps.reproduce import peers, published
from didi.apps.reproduce.cells import Cell, LikelihoodCell, Run, name_of
from didi.apps.reproduce.plan import Plan
from didi.apps.reproduce.study import Study
from didi.data.markov import MARKOV
from didi.evaluation.anchors import ANCHORS, CORPUS_TEXTS
from didi.evaluation.figure import latency_figure, perplexity_figure
from didi.evaluation.machine import machine_name
from didi.evaluation.report import quoted, rows_table
from didi.evaluation.row import EvaluationRow
from didi.evaluation.zero_shot import likelihood_table
from didi.markdown import markdown_table
from didi.models.bundle import Role

BASELINE: Role = "autoregressive"


def table_7_cells(plan: Plan) -> list[LikelihoodCell]:
    """Likelihood cells of teacher, student, baseline and peers."""
    return _own_likelihoods(plan) + peers.likelihood_cells(plan.peers, plan.corpora)


def _own_likelihoods(plan: Plan) -> list[LikelihoodCell]:
    networks: dict[Role, Run | str | None] = {
        "teacher": plan.teacher, "student": plan.student, BASELINE: plan.baseline,
    }  # fmt: skip
    return [
        LikelihoodCell(bundle, role, corpus)
        for corpus in plan.corpora
        for role, bundle in networks.items()
        if bundle is not None
    ]


def table_7(plan: Plan, study: Study) -> list[str]:
    """Table 7: likelihoods of teacher, student, baseline and peers."""
    rows = [study.likelihood(cell) for cell in _own_likelihoods(plan)]
    baseline = "" if plan.baseline is None else f", baseline {name_of(plan.baseline)}"
    lines = [likelihood_table(rows, model=f"teacher {plan.teacher}{baseline}", machine=machine_name())]
    if plan.peers:
        lines += ["\n### Other teachers\n", *peers.peers_table(plan.peers, plan.corpora, study), ""]
    if plan.scale == "paper":
        body = [[name, *row] for name, row in published.TABLE_7.items()]
        lines += markdown_table(["as published", *published.TABLE_7_CORPORA], body)
    return lines


def _about_baseline(plan: Plan, rows: Sequence[EvaluationRow]) -> list[str]:
    """A sentence about the baseline, and about the lengths of sequences if they differ."""
    if plan.baseline is None:
        return []
    baseline = next(row for row in rows if row.role == BASELINE)
    teacher = next(row for row in rows if row.role == "teacher")
    bundle = name_of(plan.baseline)
    text = f"The autoregressive baseline is that of `{bundle}`, one pass for each of its {baseline.nfe} tokens."
    length = round(teacher.tokens_per_second * teacher.seconds_per_sequence)
    if length != baseline.nfe:
        text += (
            f" The sequences of the other networks have {length} tokens: the entropy within a sequence and the "
            "perplexity depend on the length, so compare the baseline with them by Table 7 alone."
        )
    return [f"{text}\n"]


def _as_published(plan: Plan, figure: str) -> list[str]:
    return [f"{published.FIGURES[figure]}\n"] if plan.scale == "paper" else []


def figure_1_cells(plan: Plan) -> list[Cell]:
    """Cells of teacher, student with and without guidance, baseline, data, anchors and peers."""
    return _own_samples(plan) + [cell for cells in _peer_cells(plan).values() for cell in cells]


def _peer_cells(plan: Plan) -> dict[str, list[Cell]]:
    return peers.sample_cells(plan.peers, (*plan.nfes, *plan.more_teacher_nfes)[::2])  # every second number


def _own_samples(plan: Plan) -> list[Cell]:
    student = plan.student
    cells = plan.teacher_cells
    cells += [Cell(student, "student", sampler, nfe) for sampler in ("ancestral", "guided") for nfe in plan.nfes]
    return cells + _baseline_cells(plan)


def _baseline_cells(plan: Plan) -> list[Cell]:
    """The cell of the baseline, if there is one; its row has the length as number of moves, whatever ``nfe`` is."""
    return [] if plan.baseline is None else [Cell(plan.baseline, BASELINE, nfe=1)]


def figure_1(plan: Plan, study: Study) -> list[str]:
    """Figure 1: perplexity against the number of moves, the table, and the first text of each generated set.

    Sequences of the symbols of a chain are not shown: they say nothing to a reader.
    """
    cells = _own_samples(plan)
    rows = [study.row(cell) for cell in cells]
    figure = perplexity_figure([row for row in rows if row.role not in ANCHORS], study.folder / "figure1.png")
    lines = [f"![Perplexity and entropy against NFE]({figure.name})\n", *_as_published(plan, "figure1")]
    lines += _about_baseline(plan, rows)
    lines.append(rows_table(rows, recipe=plan.recipe.recipe))
    generated = [(cell, row) for cell, row in zip(cells, rows, strict=True) if row.role not in CORPUS_TEXTS]
    for cell, row in generated if plan.scale != MARKOV else ():
        lines.append(f"**{row.label()}** (perplexity {row.gen_ppl:.1f}, entropy {row.entropy:.2f})\n")
        lines.append(quoted(study.record(cell)["texts"][0]))
    return lines + _peers_figure(plan, study, [row for row in rows if row.role == "data"])


def _peers_figure(plan: Plan, study: Study, data: Sequence[EvaluationRow]) -> list[str]:
    """A figure and a table of the peers, with held-out data."""
    if not plan.peers:
        return []
    by_name = _peer_cells(plan)
    rows = [replace(study.row(cell), role=name) for name, cells in by_name.items() for cell in cells]
    figure = perplexity_figure([*data, *rows], study.folder / "figure1-teachers.png")
    return [
        "\n### Other teachers\n",
        *peers.caption(plan.peers),
        f"![Perplexity and entropy of other teachers against NFE]({figure.name})\n",
        rows_table(rows, recipe=plan.recipe.recipe),
    ]


def figure_3_cells(plan: Plan) -> list[Cell]:
    """Cells of Figure 1 without the peers."""
    return _own_samples(plan)


def figure_3(plan: Plan, study: Study) -> list[str]:
    """Figure 3: perplexity against seconds per sequence, measured while other workers were running."""
    cells = figure_3_cells(plan)
    rows = [study.row(cell) for cell in cells]
    workers = max(study.record(cell)["workers"] for cell in cells)
    beside = f"{workers} processes were running" if workers > 1 else "no other process was running"
    figure = latency_figure([row for row in rows if row.role not in ANCHORS], study.folder / "figure3.png")
    return [
        f"![Perplexity against seconds per sequence]({figure.name})\n",
        *_as_published(plan, "figure3"),
        *_about_baseline(plan, rows),
        f"Times are of {study.sampling.num_samples} sequences in batches of {study.sampling.batch_size} while "
        f"{beside}. `didi bench` compares times side by side.",
    ]


def figure_4_cells(plan: Plan) -> list[Cell]:
    """Cells of the teachers of both sizes, their students, and the baseline."""
    cells = plan.teacher_cells + [Cell(plan.first_run, "student", nfe=nfe) for nfe in plan.nfes]
    if plan.larger is not None:
        cells += [Cell(plan.larger, "teacher", nfe=nfe) for nfe in plan.nfes]
        cells += [Cell(_larger_student(plan), "student", nfe=nfe) for nfe in plan.nfes]
    return cells + _baseline_cells(plan)


def _larger_student(plan: Plan) -> Run:
    """The distillation of the larger teacher with the same settings."""
    if isinstance(plan.larger, Run):
        return Run(replace(plan.recipe, seed=plan.seeds[0]), teacher=plan.larger)
    return Run(replace(plan.recipe, teacher=plan.larger or "", seed=plan.seeds[0]))


def figure_4(plan: Plan, study: Study) -> list[str]:
    """Figure 4: perplexity of both sizes against the number of moves."""
    if plan.larger is None:
        return ["No larger teacher was given: name one with --larger."]
    rows = []
    for cell in figure_4_cells(plan):
        row = study.row(cell)
        is_larger = cell.role != BASELINE and cell.bundle in (plan.larger, _larger_student(plan))
        if row.role not in ANCHORS:
            rows.append(replace(row, role=f"{row.role}, larger") if is_larger else row)
    teachers = [Cell(bundle, "teacher", nfe=plan.nfes[0]) for bundle in (plan.teacher, plan.larger)]
    sizes = [study.record(cell)["num_parameters"] for cell in teachers]
    figure = perplexity_figure(rows, study.folder / "figure4.png")
    return [
        f"![Perplexity and entropy against NFE]({figure.name})\n",
        *_as_published(plan, "figure4"),
        *_about_baseline(plan, rows),
        f"Teachers of {sizes[0]:,} and {sizes[1]:,} parameters, trained and distilled with the same settings.\n",
        rows_table(rows, recipe=plan.recipe.recipe),
    ]
