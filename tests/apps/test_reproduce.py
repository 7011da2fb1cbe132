"""``didi reproduce``: the cells and runs of each target, and finished work that is reused or refused."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from didi.apps.reproduce import command, published, study
from didi.apps.reproduce.cells import Cell, Run
from didi.apps.reproduce.figures import figure_1_cells, figure_4_cells, table_7_cells
from didi.apps.reproduce.peers import RECIPE_SUFFIXES
from didi.apps.reproduce.study import Sampling, Study
from didi.errors import DidiError, Interrupted, UsageError
from didi.models.bundle import Bundle, digest
from didi.recipes import PRETRAIN
from didi.recipes.ablations import (
    GUIDED,
    TRICKS,
    cumulative,
    decisions,
    leave_one_out,
    objective_without_tricks,
    with_objective,
)
from didi.sampling.guided import Guidance
from didi.training.trainer import Trainer

from ..two_moves import MARKOV


@pytest.fixture
def quick(monkeypatch):
    """Runs of two steps, two numbers of moves, eight samples."""
    full = command._plan

    def plan(arguments):
        shortened = full(arguments)
        loop = replace(shortened.recipe.loop, steps=2, batch_size=4, validation_sequences=4)
        recipe = replace(
            shortened.recipe,
            loop=loop,
            discriminator=replace(shortened.recipe.discriminator, warmup_steps=1, pool_size=8, pool_nfe=2),
        )
        shorter = {
            name: Run(
                replace(getattr(shortened, name).config, loop=replace(PRETRAIN["markov"].loop, steps=1, batch_size=2))
            )
            for name in ("baseline", "larger")
        }
        peers = {
            name: replace(peer, config=replace(peer.config, loop=shorter["baseline"].config.loop))
            for name, peer in shortened.peers.items()
        }
        return replace(shortened, recipe=recipe, nfes=(1, 2), more_teacher_nfes=(), peers=peers, **shorter)

    monkeypatch.setattr(command, "_plan", plan)
    monkeypatch.setitem(command.SAMPLING, "markov", Sampling(8, "markov", likelihood_sequences=4))


def reproduce(folder, *targets):
    command.reproduce([*targets, "--scale", "markov", "--out", str(folder), "--workers", "1", "--seeds", "1"])
    return (folder / "report.md").read_text()


@pytest.mark.slow
def test_finished_cells_are_reused_after_the_networks_are_deleted(quick, tmp_path, monkeypatch):
    report = reproduce(tmp_path, "table5", "table7", "figure1")
    assert (tmp_path / "figure1.png").stat().st_size > 10_000
    html = (tmp_path / "report.html").read_text()
    assert "<title>didi reproduce --scale markov</title>" in html
    assert html.count("<table>") == html.count("</table>") == 6
    assert html.count('src="data:image/png;base64,') == 2
    assert 'src="figure' not in html
    shutil.rmtree(tmp_path / "runs")

    def never(*_):
        raise AssertionError("finished work was repeated")

    monkeypatch.setattr(study, "train_run", never)
    monkeypatch.setattr(study, "measure", never)
    assert reproduce(tmp_path, "table5", "table7", "figure1") == report


@pytest.mark.slow
def test_all_targets_are_in_the_report(quick, tmp_path):
    report = reproduce(tmp_path, "all")
    headings = [line for line in report.splitlines() if line.startswith("## ")]
    assert headings == [f"## {target.title}" for target in command.targets_of("markov").values()]
    for name in (*published.TABLE_1, *published.TABLE_2, *decisions(MARKOV)):
        assert f"| {name} | " in report
    for name in ("figure1", "figure1-teachers", "figure3", "figure4"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    for name in RECIPE_SUFFIXES:
        assert sum(line.startswith(f"| {name} ") for line in report.splitlines()) >= 2
    assert "| SEDD absorb below Duo |" in report


@pytest.mark.parametrize("scale", ["markov", "tiny", "paper"])
def test_the_targets_of_every_scale_have_their_cells(scale):
    plan = command._plan(command.ReproduceCommand(scale, Path("x"), teacher="elsewhere"))
    trained = {"table1": 6, "table2": 6, "decisions": len(decisions(plan.recipe))}
    guided = {"table1": 1, "table2": 6, "decisions": 0}
    for name, num_trained in trained.items():
        cells = set(command.TARGETS[name].cells(plan))
        students = [cell for cell in cells if cell.role == "student"]
        assert len({cell.bundle for cell in students}) == num_trained * len(plan.seeds)
        num_guided = sum(cell.sampler == "guided" for cell in students)
        assert num_guided == guided[name] * len(plan.seeds) * len(plan.nfes)
        assert set(plan.teacher_sweep) <= cells
    for name in ("table7", "figure1", "figure3", "figure4"):
        assert command.TARGETS[name].cells(plan)


def test_figures_show_the_bundled_student_where_the_teacher_is_bundled():
    for teacher, is_bundled in ((None, True), ("tiny-news", True), ("elsewhere", False)):
        plan = command._plan(command.ReproduceCommand("tiny", Path("x"), teacher=teacher))
        short = Run(replace(plan.recipe, teacher=plan.teacher, seed=0))
        for cells, student in (
            (figure_1_cells(plan), "tiny-news" if is_bundled else short),
            (table_7_cells(plan), "tiny-news" if is_bundled else short),
            (figure_4_cells(plan), short),
        ):
            assert {cell.bundle for cell in cells if cell.role == "student"} == {student}


def test_ablations_at_small_scales_keep_the_reductions_of_variance():
    for scale in ("markov", "tiny", "paper"):
        plan = command._plan(command.ReproduceCommand(scale, Path("x"), teacher="elsewhere"))
        objective = plan.ablated.objective
        reduced = (objective.completions, objective.advantage, objective.revealed_only)
        expected = (
            (1, "batch", False) if scale == "paper" else (plan.recipe.objective.completions, "shared-state", True)
        )
        assert reduced == expected
        assert (objective.weight, objective.coupled_time, objective.moves) == ("constant", False, None)


def test_decisions_are_about_the_generator_of_two_moves():
    assert next(iter(decisions(MARKOV))) == "our recipe"
    name, config = next(iter(decisions(with_objective(MARKOV, trajectory="path", moves=8)).items()))
    assert name == "our recipe, of two moves"
    assert config == MARKOV


def test_rows_of_equal_settings_are_one_run():
    base = replace(MARKOV, objective=objective_without_tricks())
    first, second = cumulative(base), leave_one_out(base)
    assert first["+ Regularization"] == second["Baseline (with all tricks)"]
    assert first["+ π(t) Weighting"] == second["w/o Regularization"]
    assert len({Run(config).name(digest) for config in (*first.values(), *second.values())}) == 10
    assert Run(base).name(digest) != Run(replace(base, seed=1)).name(digest)
    assert Run(base, teacher=Run(PRETRAIN["markov"])).name(digest) != Run(base).name(digest)


def test_each_row_differs_from_its_neighbour_by_its_trick_alone():
    base = replace(MARKOV, objective=objective_without_tricks())
    rows = list(cumulative(base).values())
    for (before, after), trick in zip(pairwise(rows), TRICKS.values(), strict=True):
        changed = {name for name, value in vars(after.objective).items() if vars(before.objective)[name] != value}
        assert changed == set(trick)
        assert replace(after, objective=before.objective) == before
    *one_less, full = leave_one_out(base).values()
    for row, trick in zip(one_less, TRICKS.values(), strict=True):
        assert {name for name, value in vars(full.objective).items() if vars(row.objective)[name] != value} == set(
            trick
        )


def test_the_published_tables_have_the_rows_of_the_ablations():
    base = replace(MARKOV, objective=objective_without_tricks())
    assert [*cumulative(base), f"+ {GUIDED}"] == list(published.TABLE_1)
    *one_less, full = leave_one_out(base)
    assert [*one_less, f"w/o {GUIDED}", full] == list(published.TABLE_2)


@pytest.mark.slow
def test_cells_of_other_sampling_settings_are_refused(tmp_path):
    cells = [Cell("markov", "data", nfe=0), Cell("markov", "teacher", nfe=1)]
    Study(tmp_path, Sampling(8, "markov"), workers=1).complete(cells)
    (row,) = [json.loads(path.read_text())["row"] for path in (tmp_path / "cells").glob("*-teacher-*.json")]
    assert (row["num_samples"], row["nfe"], row["seed"]) == (8, 1, 20_264)
    with pytest.raises(UsageError, match="holds cells of other sampling settings"):
        Study(tmp_path, Sampling(9, "markov"), workers=1).complete(cells)


@pytest.mark.slow
def test_cells_of_a_version_without_a_guidance_setting_are_reused(tmp_path):
    cells = [Cell("markov", "data", nfe=0)]
    Study(tmp_path, Sampling(8, "markov"), workers=1).complete(cells)
    file = tmp_path / "sampling.json"
    record = json.loads(file.read_text())
    assert record["guidance"].pop("initial_scale") == 0
    file.write_text(json.dumps(record))
    Study(tmp_path, Sampling(8, "markov"), workers=1).complete(cells)
    with pytest.raises(UsageError, match="holds cells of other sampling settings"):
        Study(tmp_path, Sampling(8, "markov", guidance=Guidance(initial_scale=3.0)), workers=1).complete(cells)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted("stopped at step 3 of 6, saved")])
def test_a_stopped_study_advises_the_same_command_and_not_resume(tmp_path, monkeypatch, error):
    def complete(*_):
        raise error

    monkeypatch.setattr(Study, "complete", complete)
    with pytest.raises(
        Interrupted, match=r"^stopped; finished work is kept in .*study: run the same command to continue$"
    ):
        command.reproduce(["table1", "--scale", "markov", "--out", str(tmp_path / "study")])


@pytest.mark.slow
def test_a_stopped_run_continues_from_its_last_checkpoint(tmp_path, monkeypatch):
    config = replace(
        PRETRAIN["markov"],
        loop=replace(PRETRAIN["markov"].loop, steps=4, batch_size=2, checkpoint_every=2, validation_sequences=4),
    )
    stopped, run = Study(tmp_path, Sampling(4, "markov"), workers=1), Run(config)
    step = Trainer.step
    calls = []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise DidiError("stopped")
        return step(*args, **options)

    monkeypatch.setattr(Trainer, "step", failing)
    cells = [Cell(run, "teacher", nfe=1)]
    with pytest.raises(DidiError, match="stopped"):
        stopped.complete(cells)
    stopped.complete(cells)
    assert len(calls) == 3 + 2  # from the checkpoint at step 2
    assert stopped.row(cells[0]).role == "teacher"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "markov", "--out", "x"], "reproduce takes one target or more"),
        (["table3", "--scale", "markov", "--out", "x"], "got 'table3'"),
        (["table1", "--scale", "markov", "--out", "x", "--seeds", "0"], "--seeds is 1 or more; got 0"),
        (["table1", "--scale", "paper", "--out", "x"], "needs --teacher"),
    ],
)
def test_wrong_use_is_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        command.reproduce(words)
    assert "\n" not in str(caught.value)


def test_held_out_data_needs_the_corpus_of_the_bundle(make_dit):
    assert study.corpus_of(Bundle(teacher=make_dit(), provenance={"corpus": "news"})) == "news"
    with pytest.raises(UsageError, match="does not record it: add corpus: NAME under provenance"):
        study.corpus_of(Bundle(teacher=make_dit()))
