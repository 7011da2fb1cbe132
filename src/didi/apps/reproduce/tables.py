"""Tables from the cells of a study: the paper's ablations and hyperparameters, our decisions and objectives."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from didi.apps.reproduce import published
from didi.apps.reproduce.cells import Cell
from didi.apps.reproduce.exact_tables import Measured, exact_lines, exact_rows, objectives, settings_line
from didi.apps.reproduce.plan import TEMPERATURES, Plan
from didi.apps.reproduce.study import Study
from didi.evaluation.frontier import perplexity_at_entropy
from didi.evaluation.over_seeds import geometric_estimate
from didi.evaluation.row import EvaluationRow
from didi.markdown import markdown_table
from didi.methods.didi_settings import DistillConfig
from didi.methods.elbo import PretrainConfig
from didi.recipes import DISTILL, PRETRAIN
from didi.recipes.ablations import GUIDED, cumulative, decisions, leave_one_out

Published = Mapping[str, tuple[tuple[float, float], ...]]
Rows = dict[str, tuple[DistillConfig, bool]]
"""(Configuration, whether it is sampled with guidance) by the name of the row."""


def _table_1_rows(plan: Plan) -> Rows:
    rows: Rows = {name: (config, False) for name, config in cumulative(plan.ablated).items()}
    return rows | {f"+ {GUIDED}": (list(rows.values())[-1][0], True)}


def _table_2_rows(plan: Plan) -> Rows:
    configs = leave_one_out(plan.ablated)
    if plan.is_exact:  # exact guided distributions take minutes, so only one row of Table 1 is guided
        return {name: (config, False) for name, config in configs.items()}
    *one_less, full = configs.items()
    rows: Rows = {name: (config, True) for name, config in one_less}
    return rows | {f"w/o {GUIDED}": (full[1], False), full[0]: (full[1], True)}


def _decision_rows(plan: Plan) -> Rows:
    return {name: (config, False) for name, config in decisions(plan.recipe).items()}


def _objective_rows(plan: Plan) -> Rows:
    return {name: (config, False) for name, config in objectives(plan).items()}


def _cells(plan: Plan, rows: Rows) -> list[Cell]:
    cells = [cell for row in rows.values() for nfe in plan.nfes for cell in _over_seeds(plan, *row, nfe)]
    cells += [Cell(plan.teacher, "teacher", nfe=nfe) for nfe in plan.nfes]
    return cells if plan.is_exact else cells + plan.teacher_sweep


def _over_seeds(plan: Plan, config: DistillConfig, is_guided: bool, nfe: int) -> list[Cell]:
    """The cells of one row and one number of moves, a cell for each seed."""
    sampler = "guided" if is_guided else "ancestral"
    return [Cell(run, "student", sampler, nfe) for run in plan.runs(config)]


def table_1_cells(plan: Plan) -> list[Cell]:
    """Cells of Table 1."""
    return _cells(plan, _table_1_rows(plan))


def table_2_cells(plan: Plan) -> list[Cell]:
    """Cells of Table 2."""
    return _cells(plan, _table_2_rows(plan))


def decisions_cells(plan: Plan) -> list[Cell]:
    """Cells of the table of our decisions."""
    return _cells(plan, _decision_rows(plan))


def objectives_cells(plan: Plan) -> list[Cell]:
    """Cells of the table of objectives."""
    return _cells(plan, _objective_rows(plan))


def objectives_table(plan: Plan, study: Study) -> list[str]:
    """The presets and our objectives, each compared with our objective of two moves."""
    rows = _objective_rows(plan)
    reference = next(name for name, (config, _) in rows.items() if config == plan.recipe)
    settings = [f"- {name}: {settings_line(config)}" for name, (config, _) in rows.items()]
    reordered = {name: row for name, row in rows.items() if name != reference} | {reference: rows[reference]}
    return [*_ablation(plan, study, reordered, {}, is_cumulative=False), "\nHow each was trained:\n", *settings]


def table_1(plan: Plan, study: Study) -> list[str]:
    """Table 1, each row compared with the row before it."""
    return _ablation(plan, study, _table_1_rows(plan), published.TABLE_1, is_cumulative=True)


def table_2(plan: Plan, study: Study) -> list[str]:
    """Table 2, each row compared with the full model."""
    return _ablation(plan, study, _table_2_rows(plan), published.TABLE_2, is_cumulative=False)


def decisions_table(plan: Plan, study: Study) -> list[str]:
    """Our decisions, each alternative compared with our recipe."""
    rows = _decision_rows(plan)
    first = next(iter(rows))
    reordered = {name: row for name, row in rows.items() if name != first} | {first: rows[first]}
    return _ablation(plan, study, reordered, {}, is_cumulative=False)


def _ablation(plan: Plan, study: Study, rows: Rows, paper: Published, *, is_cumulative: bool) -> list[str]:
    """Perplexity and entropy of each row over seeds, then ratios to the row before or to the last row."""
    measured = {
        name: {nfe: [study.row(cell) for cell in _over_seeds(plan, *row, nfe)] for nfe in plan.nfes}
        for name, row in rows.items()
    }
    if plan.is_exact:
        return exact_lines(exact_rows(plan, study), measured, is_cumulative=is_cumulative)
    teacher = {nfe: [study.row(Cell(plan.teacher, "teacher", nfe=nfe))] for nfe in plan.nfes}
    sweep = [(row.entropy, row.gen_ppl) for row in map(study.row, plan.teacher_sweep)]
    with_teacher = {"teacher": teacher} | measured
    over_teacher = {
        name: [row.gen_ppl / perplexity_at_entropy(sweep, row.entropy) for row in by_nfe[plan.middle_nfe]]
        for name, by_nfe in with_teacher.items()
    }
    lines = _levels(plan, with_teacher, over_teacher)
    lines += ["", *(_published_table(paper) if plan.scale == "paper" and paper else [])]
    return lines + _ratios(plan, measured, over_teacher, paper, is_cumulative=is_cumulative)


def _levels(plan: Plan, measured: Measured, over_teacher: Mapping[str, Sequence[float]]) -> list[str]:
    columns = [*(f"{nfe} NFE" for nfe in plan.nfes), f"ratio to the teacher at equal entropy, {plan.middle_nfe} NFE"]
    body = [
        [name, *(perplexity_cell(by_nfe[nfe]) for nfe in plan.nfes), ratio_cell(over_teacher[name], has_verdict=False)]
        for name, by_nfe in measured.items()
    ]
    return [
        *markdown_table(["perplexity / entropy", *columns], body),
        "\nLast column: perplexity divided by that of the teacher at the entropy of the row, interpolated between "
        f"samples of the teacher at temperatures {TEMPERATURES[0]} to {TEMPERATURES[-1]}. A lower temperature alone "
        "does not lower this ratio. –: the entropy of a seed is outside the teacher's range. Intervals are over "
        "training seeds; they do not include the sampling error of the teacher, which all rows share.",
    ]


def _ratios(
    plan: Plan,
    measured: Measured,
    over_teacher: Mapping[str, Sequence[float]],
    paper: Published,
    *,
    is_cumulative: bool,
) -> list[str]:
    middle, against = plan.middle_nfe, "the row before" if is_cumulative else "the last row"
    columns = [*(f"{nfe} NFE" for nfe in plan.nfes), f"entropy, {middle} NFE", f"ratio at equal entropy, {middle} NFE"]
    columns += [f"as published, {nfe} NFE" for nfe in (published.NFES[0], published.NFES[-1])] if paper else []
    body = []
    names = list(measured)
    for number, name in enumerate(names):
        base = names[number - 1] if is_cumulative else names[-1]
        if name == base or (is_cumulative and not number):
            continue
        pairs = {nfe: list(zip(measured[name][nfe], measured[base][nfe], strict=True)) for nfe in plan.nfes}
        cells = [ratio_cell([row.gen_ppl / other.gen_ppl for row, other in pairs[nfe]]) for nfe in plan.nfes]
        cells.append(f"{statistics.fmean(row.entropy - other.entropy for row, other in pairs[middle]):+.3f}")
        ratios = [ratio / other for ratio, other in zip(over_teacher[name], over_teacher[base], strict=True)]
        cells.append(ratio_cell(ratios))
        if paper:
            cells += [f"{paper[name][i][0] / paper[base][i][0]:.2f}" for i in (0, -1)]
        body.append([name, *cells])
    return [
        f"Perplexity divided by that of {against}, paired by training seed: geometric mean [95% interval]; *lower* "
        "or *higher*: the interval excludes 1. The column entropy has differences in nats.\n",
        *markdown_table(["", *columns], body),
    ]


def perplexity_cell(rows: Sequence[EvaluationRow]) -> str:
    """Perplexity and entropy over seeds."""
    perplexity = geometric_estimate([row.gen_ppl for row in rows])
    return f"{perplexity} / {statistics.fmean(row.entropy for row in rows):.2f}"


def ratio_cell(ratios: Sequence[float], *, has_verdict: bool = True) -> str:
    """Geometric mean and interval of ratios, one for each seed; *lower* or *higher* if the interval excludes 1."""
    if any(map(math.isnan, ratios)):
        return "–"
    estimate = geometric_estimate(ratios)
    verdict = " *lower*" if estimate.high < 1 else " *higher*" if estimate.low > 1 else ""
    return f"{estimate}{verdict if has_verdict else ''}"


def _published_table(paper: Published) -> list[str]:
    body = [[name, *(f"{ppl:g} / {entropy}" for ppl, entropy in by_nfe)] for name, by_nfe in paper.items()]
    return [*markdown_table(["as published", *(f"{nfe} NFE" for nfe in published.NFES)], body), ""]


def table_5(plan: Plan, study: Study) -> list[str]:
    """Our settings and the paper's."""
    del study
    paper_teacher, paper = PRETRAIN["owt-169m"], DISTILL["owt-169m"]
    our_teacher = PRETRAIN.get(
        {"markov": "markov", "exact": "exact", "tiny": "tiny-news", "paper": "owt-169m"}[plan.scale], paper_teacher
    )
    columns = {
        "teacher, here": _settings(our_teacher),
        "teacher, paper": _settings(paper_teacher),
        "student, here": _settings(plan.recipe),
        "student, paper": _settings(paper),
    }
    names = dict.fromkeys(name for column in columns.values() for name in column)
    body = [[name, *(column.get(name, "–") for column in columns.values())] for name in names]
    return markdown_table(["", *columns], body)


def _settings(config: PretrainConfig | DistillConfig) -> dict[str, object]:
    optimizer = config.student_optimizer if isinstance(config, DistillConfig) else config.optimizer
    kept = {name: value for name, value in asdict(optimizer).items() if name != "muon_rate_scale"}
    loop = {"steps": config.loop.steps, "batch": config.loop.batch_size * config.loop.accumulation}
    return kept | loop | {"EMA decay": config.loop.ema_decay}
