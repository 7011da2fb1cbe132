"""Tables of ``didi reproduce --methods``: quality at each number of moves, against the reference, and cost."""

import math
import statistics

from didi.apps.reproduce import cost
from didi.apps.reproduce.cells import name_of
from didi.apps.reproduce.method_measures import JOINT, Measure, Rows, measures, rows_of
from didi.apps.reproduce.methods import MethodPlan
from didi.apps.reproduce.study import Study
from didi.apps.reproduce.tables import perplexity_cell
from didi.evaluation.machine import machine_name
from didi.evaluation.over_seeds import estimate
from didi.markdown import markdown_table

TOLERANCE = 1.1
"""Ratio of the largest training budget to the smallest above which the report notes that budgets differ."""


def heading(plan: MethodPlan, study: Study) -> list[str]:
    """Lines at the head of the report: training, sampling and judging of the students."""
    sampling = study.sampling
    lines = [
        f"Settings: those of `didi.recipes.COMPARED` for `{plan.settings.recipe}`, or of the recipe where it has none. "
        f"Training seeds {', '.join(map(str, plan.seeds))}. {sampling.num_samples} samples for each entry, seed "
        f"{sampling.seed}, judge `{sampling.judge}`, draws in float64, uniform time grid; {machine_name()}. Intervals "
        "are 95% t-intervals over training seeds; a teacher is one network and has none.\n",
        *(_settings_line(plan, study, method) for method in plan.configs),
        "",
        *(measure.about for measure in measures(plan, study)),
    ]
    budgets = _budgets(plan, study)
    known = [value for value in budgets.values() if not math.isnan(value)]
    if known and max(known) > TOLERANCE * min(known):
        listed = ", ".join(f"{name} {millions(value)}" for name, value in budgets.items())
        lines.append(f"\n**Budgets differ by more than {TOLERANCE - 1:.0%}**: {listed} million passes.")
    return lines


def _settings_line(plan: MethodPlan, study: Study, method: str) -> str:
    """A line about the training and sampling of one method."""
    config, curves = plan.configs[method], [curve for curve in plan.curves if curve.method == method]
    moves = study.record(curves[0].cells(curves[0].nfes[0])[0]).get("intended_nfe")
    made_for = f", trained for {moves} move{'s' if moves > 1 else ''}" if moves else ""
    batch = config.loop.batch_size * config.loop.accumulation
    return (
        f"- {method}: teacher `{name_of(plan.teachers[method])}`, {config.num_steps:,} steps, batch {batch}, "
        f"{millions(_budgets(plan, study)[method])} million sequence passes{made_for}; sampler "
        f"{' and '.join(curve.sampler for curve in curves)}"
    )


def _budgets(plan: MethodPlan, study: Study) -> dict[str, float]:
    """Sequence passes of each method, the mean over seeds."""
    return {
        method: statistics.fmean(cost.read_cost(study.cost_file(run)).sequence_passes for run in plan.runs(method))
        for method in plan.configs
    }


def millions(value: float) -> str:
    """A number of passes, in millions."""
    return "–" if math.isnan(value) else f"{value / 1e6:.2f}"


def method_tables(plan: MethodPlan, study: Study) -> list[str]:
    """Tables of quality, differences to the reference, joint divergences and costs."""
    by_name, used = rows_of(plan, study), measures(plan, study)
    lines = []
    for measure in used:
        lines += [*_quality(plan, by_name, measure), ""]
    if len(used) > 1 or used[0].is_ratio:
        body = [[name, *(perplexity_cell(rows[nfe]) if nfe in rows else "" for nfe in plan.settings.nfes)]
                for name, rows in by_name.items()]  # fmt: skip
        lines += [*markdown_table(["perplexity / entropy", *_columns(plan)], body), ""]
    notes = {name: dict.fromkeys(row.note for of_seeds in rows.values() for row in of_seeds if row.note)
             for name, rows in by_name.items()}  # fmt: skip
    lines += [f"Note on {name}: {note}.\n" for name, given in notes.items() for note in given]
    return [*lines, *_differences(plan, by_name, used[0]), "", *_joint(plan, study), *_costs(plan, study)]


def _columns(plan: MethodPlan) -> list[str]:
    return [_moves(nfe) for nfe in plan.settings.nfes]


def _moves(nfe: int) -> str:
    return f"{nfe} move{'s' if nfe > 1 else ''}"


def _quality(plan: MethodPlan, by_name: Rows, measure: Measure) -> list[str]:
    body = [
        [name, *(measure.level(list(map(measure.of, rows[nfe]))) if nfe in rows else "" for nfe in plan.settings.nfes)]
        for name, rows in by_name.items()
    ]
    return markdown_table([measure.name, *_columns(plan)], body)


def _differences(plan: MethodPlan, by_name: Rows, measure: Measure) -> list[str]:
    """A table of every other student compared with the reference at equal numbers of moves."""
    base, body = by_name[plan.reference], []
    for curve in plan.curves:
        if not curve.method or curve.name == plan.reference:
            continue
        pairs = {nfe: (rows, base[nfe]) for nfe, rows in by_name[curve.name].items() if nfe in base}
        cells = {nfe: measure.change(*(list(map(measure.of, rows)) for rows in pair)) for nfe, pair in pairs.items()}
        body.append([curve.name, *(cells.get(nfe, "") for nfe in plan.settings.nfes)])
    if not body:
        return []
    how = "divided by that of" if measure.is_ratio else "minus that of"
    neutral = 1 if measure.is_ratio else 0
    return [
        f"{_sentence(measure.name)} {how} {plan.reference} at the same number of moves, paired by training seed: mean "
        f"[95% interval]; *lower* or *higher*: the interval excludes {neutral}.\n",
        *markdown_table(["", *_columns(plan)], body),
    ]


def _joint(plan: MethodPlan, study: Study) -> list[str]:
    """Tables of joint divergences from a trained network; nothing if the plan has none."""
    by_name = {
        name: {nfe: list(map(study.joint_kl, cells)) for nfe, cells in by_nfe.items()}
        for name, by_nfe in plan.joint_cells.items()
    }
    if not by_name:
        return []
    settings, base = plan.settings, by_name[plan.reference]
    levels = [
        [name, *(JOINT.level(kls[nfe]) if nfe in kls else "" for nfe in settings.joint_nfes)]
        for name, kls in by_name.items()
    ]
    others = [curve.name for curve in plan.curves if curve.method and curve.name != plan.reference]
    changes = [
        [name, *(JOINT.change(kls[nfe], base[nfe]) if {nfe} <= kls.keys() & base.keys() else ""
                 for nfe in settings.joint_nfes)]
        for name, kls in by_name.items() if name in others
    ]  # fmt: skip
    columns = [_moves(nfe) for nfe in settings.joint_nfes]
    return [
        f"Joint KL from the autoregressive network `{settings.joint_reference}`, trained for "
        f"{settings.teacher_steps:,} steps on the same tokens, in nats per sequence. It is estimated by a network that "
        f"is fitted to {settings.joint_samples} samples, is a lower bound in expectation, and is a divergence from "
        "that autoregressive network, not from the data (docs/evaluation.md).\n",
        *markdown_table([JOINT.name, *columns], levels),
        "",
        f"{_sentence(JOINT.name)} minus that of {plan.reference} at the same number of moves, paired by training "
        "seed.\n",
        *markdown_table(["", *columns], changes),
        "",
    ]


def _costs(plan: MethodPlan, study: Study) -> list[str]:
    """A table of the training cost of one student of each method."""
    body = []
    for method, passes in _budgets(plan, study).items():
        first, *_ = runs = plan.runs(method)
        file = study.cost_file(first)
        needs = cost.memory(
            plan.configs[method], study.bundle_path(plan.teachers[method]), file.with_suffix(".memory.json")
        )
        seconds = estimate([cost.read_cost(study.cost_file(run)).seconds for run in runs])
        body.append([method, millions(passes), _number(seconds.mean), _number(needs.peak_bytes / 1e6),
                     _number(needs.num_trained)])  # fmt: skip
    header = ["cost of a student", "sequence passes, millions", "seconds", "peak memory, MB", "trained parameters"]
    beside = f"{study.workers} runs at the same time" if study.workers > 1 else "one run at a time"
    return [
        *markdown_table(header, body),
        "",
        "Sequence passes: sequences through networks; a pass with gradient counts three times. Seconds: wall time of "
        f"training with one thread, {beside}, including validations and checkpoints; means over seeds. Peak memory: "
        "largest total size of the tensors that exist at one time, from a dry run of the steps. The training of the "
        "teacher is not included.",
    ]


def _sentence(name: str) -> str:
    """The name of a measure at the beginning of a sentence."""
    return name[0].upper() + name[1:]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}"
