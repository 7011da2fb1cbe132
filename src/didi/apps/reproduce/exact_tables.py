"""Tables of ablations at scale ``exact``: exact KL of each row over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from didi.apps.reproduce.cells import Cell
from didi.apps.reproduce.plan import Plan
from didi.apps.reproduce.study import Study
from didi.errors import UsageError
from didi.evaluation.over_seeds import Estimate, estimate
from didi.evaluation.row import EvaluationRow
from didi.markdown import markdown_table
from didi.methods.didi_settings import DistillConfig
from didi.recipes import DISTILL
from didi.recipes.objectives import paths_optimizer, whole_path
from didi.recipes.presets import preset

Measured = Mapping[str, Mapping[int, Sequence[EvaluationRow]]]
"""Evaluation rows of all seeds, by the name of the table row and the number of moves."""


def objectives(plan: Plan) -> dict[str, DistillConfig]:
    """Settings of the presets, our objective of two moves and our objectives of whole paths, for the same teacher."""
    whole = DISTILL["exact"]
    # Our loop settings: the EMA decay of the released code is chosen for 10,000 steps.
    rows = {name: replace(preset(plan.recipe, name), loop=plan.recipe.loop) for name in ("paper", "released")}
    short = {
        f"whole paths of {moves} moves{suffix}": replace(
            whole,
            objective=whole_path(moves, reference_steps=reference_steps),
            student_optimizer=paths_optimizer(rate),
            discriminator=replace(whole.discriminator, warmup_steps=60),
            loop=replace(whole.loop, steps=200, batch_size=64, validate_every=200, checkpoint_every=100),
        )
        for suffix, reference_steps, rate in (("", 0, 3e-4), (", reference", 10, 1e-3))
        for moves in plan.nfes
    }
    return (
        {f"preset {name}": config for name, config in rows.items()}
        | {"two moves, reduced variance": plan.recipe}
        | short
    )


def settings_line(config: DistillConfig) -> str:
    """Training settings of a row, in words."""
    objective, discriminator, loop = config.objective, config.discriminator, config.loop
    updates = discriminator.steps_per_student_step
    fresh = ", each on new samples" if discriminator.fresh_rollouts else ""
    reference = f", a reference every {objective.reference_steps} steps" if objective.reference_steps else ""
    return (
        f"{discriminator.warmup_steps} steps of the discriminator alone, then {loop.steps} of {loop.batch_size} states "
        f"with {objective.completions} completion{'s' if objective.completions > 1 else ''}; "
        f"{updates} discriminator update{'s' if updates > 1 else ''} per step{fresh}{reference}; learning rates "
        f"{config.student_optimizer.learning_rate:g} (student) and {config.discriminator_optimizer.learning_rate:g} "
        f"(discriminator); EMA decay {loop.ema_decay:g}"
    )


def exact_lines(teacher: Mapping[int, EvaluationRow], measured: Measured, *, is_cumulative: bool) -> list[str]:
    """A table of the exact KL of every row, and a table of the differences to the row that it is compared with.

    Args:
        teacher: rows of the teacher, by the number of moves.
        measured: the other rows; all have equal numbers of moves and of seeds.
        is_cumulative: whether each row is compared with the row before it; otherwise with the last row.
    """
    nfes = list(teacher)
    body = [["teacher", *(f"{teacher[nfe].kl:.4f} / {teacher[nfe].joint_entropy:.2f}" for nfe in nfes)]]
    body += [[name, *(_level(rows[nfe]) for nfe in nfes)] for name, rows in measured.items()]
    names, changes = list(measured), []
    for number, name in enumerate(names):
        base = names[number - 1] if is_cumulative else names[-1]
        if name != base and (number or not is_cumulative):
            changes.append([name, *(_change(measured[name][nfe], measured[base][nfe]) for nfe in nfes)])
    columns = [f"{nfe} moves" for nfe in nfes]
    against = "the row before" if is_cumulative else "the last row"
    caption = (
        f"KL minus that of {against}, paired by training seed: mean [95% interval]; *lower* or *higher*: the interval "
        "excludes 0."
    )
    return [
        *markdown_table(["KL / joint entropy", *columns], body),
        f"\n{caption}\n",
        *markdown_table(["", *columns], changes),
    ]


def exact_rows(plan: Plan, study: Study) -> dict[int, EvaluationRow]:
    """The teacher's rows, by the number of moves."""
    return {nfe: study.row(Cell(plan.teacher, "teacher", nfe=nfe)) for nfe in plan.nfes}


def _level(rows: Sequence[EvaluationRow]) -> str:
    entropies = [row.joint_entropy for row in rows if row.joint_entropy is not None]
    return f"{level(_kls(rows))} / {statistics.fmean(entropies):.2f}"


def _change(rows: Sequence[EvaluationRow], base: Sequence[EvaluationRow]) -> str:
    return difference(_kls(rows), _kls(base))


def level(divergences: Sequence[float]) -> str:
    """Mean [95% interval] of a divergence over seeds."""
    return _formatted(estimate(divergences))


def difference(divergences: Sequence[float], base: Sequence[float]) -> str:
    """Mean difference to the divergences of ``base``, seed by seed; *lower* or *higher* if its interval excludes 0."""
    change = estimate([own - other for own, other in zip(divergences, base, strict=True)])
    verdict = " *lower*" if change.high < 0 else " *higher*" if change.low > 0 else ""
    return f"{_formatted(change, sign='+')}{verdict}"


def _kls(rows: Sequence[EvaluationRow]) -> list[float]:
    """The exact divergences of rows.

    Raises:
        UsageError: a row has none, for example since the teacher's context is too long for an enumeration of states.
    """
    kls = [row.kl for row in rows if not math.isnan(row.kl)]
    if len(kls) < len(rows):
        raise UsageError(
            f"--scale exact needs the exact divergence of every row; {len(rows) - len(kls)} of {len(rows)} have none: "
            "name a --teacher with the context of the bundle exact"
        )
    return kls


def _formatted(value: Estimate, sign: str = "") -> str:
    interval = "" if math.isnan(value.low) else f" [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
    return f"{value.mean:{sign}.4f}{interval}"
