"""The tables of ``didi reproduce --scale exact``, whose rows are compared by their exact divergence."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from didi.apps.reproduce import command
from didi.apps.reproduce.study import Sampling
from didi.apps.reproduce.tables import objectives_cells, objectives_table, table_1, table_1_cells, table_2_cells
from didi.errors import UsageError

from .test_reproduce_report import TrickStudy

SAMPLING = Sampling(8, "exact")


class ExactTrickStudy(TrickStudy):
    """A study whose KL is (1 - 0.1 * tricks + 0.01 * seed) / moves."""

    def row(self, cell):
        row = super().row(cell)
        kl = (1 - (4.0 - row.entropy) * 10 + 0.01 * seed_of(cell)) / cell.nfe
        return replace(row, kl=kl, joint_entropy=5.0)


def seed_of(cell):
    return 0 if isinstance(cell.bundle, str) else cell.bundle.config.seed


def planned(seeds=3):
    return command._plan(command.ReproduceCommand("exact", Path("x"), seeds=seeds))


def test_table_1_compares_rows_by_their_exact_divergence():
    lines = table_1(planned(), ExactTrickStudy(Path("x"), SAMPLING))
    assert "| teacher | 0.5000 / 5.00 | 0.2500 / 5.00 | 0.1250 / 5.00 |" in lines
    assert "| Baseline (no tricks) | 0.5050 [0.493, 0.517] / 5.00 | 0.2525 [0.246, 0.259] / 5.00 |" in "\n".join(lines)
    # One trick more: 0.1 less, over the number of moves, with every seed.
    assert "| + Score Decompose | -0.0500 [-0.050, -0.050] *lower* | -0.0250" in "\n".join(lines)


def test_rows_without_an_exact_divergence_are_refused():
    class WithoutDivergence(ExactTrickStudy):
        def row(self, cell):
            return replace(super().row(cell), kl=math.nan) if cell.nfe == 2 else super().row(cell)

    with pytest.raises(
        UsageError, match=r"needs the exact divergence of every row; 3 of 3 have none: name a --teacher"
    ):
        table_1(planned(), WithoutDivergence(Path("x"), SAMPLING))


def test_objectives_are_compared_with_two_moves():
    plan = planned()
    lines = "\n".join(objectives_table(plan, ExactTrickStudy(Path("x"), SAMPLING)))
    whole = [f"whole paths of {moves} moves{suffix}" for moves in plan.nfes for suffix in ("", ", reference")]
    for name in ("preset paper", "preset released", *whole):
        assert lines.count(f"| {name} |") == 2
    assert lines.count("a reference every 10 steps; learning rates 0.001 (student) and 0.002") == len(plan.nfes)
    assert lines.count("| two moves, reduced variance |") == 1  # nothing is compared with itself
    runs = {cell.bundle.config.objective.trajectory for cell in objectives_cells(plan) if cell.role == "student"}
    assert runs == {"two-moves", "whole-path"}


def test_only_one_row_of_table_1_is_guided_and_no_temperature_is_swept():
    plan = planned(seeds=1)
    assert {cell.temperature for cell in table_1_cells(plan)} == {1.0}
    assert sum(cell.sampler == "guided" for cell in table_1_cells(plan)) == len(plan.nfes)
    assert not any(cell.sampler == "guided" for cell in table_2_cells(plan))


@pytest.mark.parametrize(("scale", "target"), [("exact", "figure1"), ("exact", "table7"), ("markov", "objectives")])
def test_a_scale_refuses_targets_that_it_does_not_have(tmp_path, scale, target):
    with pytest.raises(UsageError, match=f"a target of --scale {scale} without --methods is one of .*; got '{target}'"):
        command.reproduce([target, "--scale", scale, "--out", str(tmp_path)])


@pytest.mark.slow
def test_a_study_at_scale_exact_reports_exact_divergences(tmp_path, monkeypatch):
    full = command._plan

    def short(arguments):
        plan = full(arguments)
        loop = replace(plan.recipe.loop, steps=1, batch_size=4, validation_sequences=4)
        settings = replace(plan.recipe.discriminator, warmup_steps=1, pool_size=8, pool_nfe=2)
        return replace(plan, recipe=replace(plan.recipe, loop=loop, discriminator=settings), nfes=(1, 2))

    monkeypatch.setattr(command, "_plan", short)
    words = ["--scale", "exact", "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    command.reproduce(["table2", *words])
    report = (tmp_path / "report.md").read_text()
    assert "without sampling error" in report
    cells = [json.loads(file.read_text())["row"] for file in (tmp_path / "cells").iterdir()]
    assert len(cells) == 2 * (6 + 1)  # five rows without a trick, all tricks, the teacher
    assert all(row["kl"] > 0 for row in cells)
    assert (
        f"| teacher | {next(row['kl'] for row in cells if row['role'] == 'teacher' and row['nfe'] == 1):.4f} /"
        in report
    )
