"""``didi reproduce --methods``: the students that are compared, their costs, and the report."""

import json
import math
from dataclasses import dataclass, replace

import pytest

from didi import recipes
from didi.apps.reproduce import command, cost, study
from didi.apps.reproduce.cells import Cell, JointCell, Run
from didi.apps.reproduce.method_figures import curves
from didi.apps.reproduce.method_measures import JOINT, KL, measures, rows_of
from didi.apps.reproduce.method_tables import heading, method_tables
from didi.apps.reproduce.methods import ALL_NFES, SCALES, method_plan
from didi.apps.reproduce.study import Sampling, Study
from didi.errors import UsageError
from didi.evaluation.row import EvaluationRow
from didi.methods import METHODS
from didi.methods.didi import Didi
from didi.methods.didi_settings import DistillConfig
from didi.models.bundle import Bundle, save
from didi.recipes import DISTILL, PRETRAIN, VARIANTS
from didi.training.run_folder import RunFolder


@dataclass(frozen=True)
class StandInConfig(DistillConfig):
    """Settings of another method."""


@dataclass(frozen=True)
class UniformConfig(DistillConfig):
    """Settings of a method for uniform-state teachers."""


@dataclass(frozen=True)
class OneConfig(DistillConfig):
    """Settings of a method with a single move."""

    @property
    def starts_at_random(self):
        return True


class StandIn(Didi):
    name = "stand-in"
    settings_type = StandInConfig


class UniformStandIn(Didi):
    name = "uniform-stand-in"
    settings_type = UniformConfig
    processes = ("uniform",)


class OneStandIn(Didi):
    name = "one-stand-in"
    settings_type = OneConfig


def as_kind(kind, config, **changes):
    """The settings of a recipe as those of another method."""
    return kind(**vars(config) | changes)


@pytest.fixture(autouse=True)
def only_didi(monkeypatch):
    """Only DiDi-Instruct is registered, without settings of comparisons."""
    for name in {*METHODS} - {"elbo", "duo", "didi"}:
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setattr(recipes, "COMPARED", {})


@pytest.fixture
def stand_ins(monkeypatch):
    """Three more methods with recipes for the scales exact and tiny; ``stand-in`` has one for markov too."""
    for method in (StandIn, UniformStandIn, OneStandIn):
        monkeypatch.setitem(METHODS, method.name, method)
    base = DISTILL["exact"]
    monkeypatch.setitem(VARIANTS, ("exact", "stand-in"), as_kind(StandInConfig, base))
    monkeypatch.setitem(VARIANTS, ("exact", "uniform-stand-in"), as_kind(UniformConfig, base, teacher="exact-duo"))
    monkeypatch.setitem(VARIANTS, ("exact", "one-stand-in"), as_kind(OneConfig, base))
    for scale_recipe in ("markov", "tiny-news"):
        monkeypatch.setitem(VARIANTS, (scale_recipe, "stand-in"), as_kind(StandInConfig, DISTILL[scale_recipe]))
    monkeypatch.setitem(
        VARIANTS, ("tiny-news", "uniform-stand-in"), as_kind(UniformConfig, DISTILL["tiny-news"], teacher="")
    )
    text = DISTILL["tiny-news"]
    unguided = replace(text.discriminator, guidance_steps=0)
    monkeypatch.setitem(VARIANTS, ("tiny-news", "one-stand-in"), as_kind(OneConfig, text, discriminator=unguided))
    monkeypatch.setattr("didi.apps.reproduce.methods.bundled_names", lambda: ["exact", "markov", "tiny-news"])


class FormulaStudy(Study):
    """A study whose results are formulas: KL is 1 / moves, half of it for ``stand-in``, 1% more for each seed."""

    def figures(self, cell):
        if isinstance(cell.bundle, str) or cell.role == "teacher":
            return 1.0
        return (0.5 if type(cell.bundle.config) is StandInConfig else 1.0) * (1 + 0.01 * cell.bundle.config.seed)

    def row(self, cell):
        value = self.figures(cell) / cell.nfe
        entropy = 4 + 0.2 * math.log(cell.temperature)
        ppl = 100 * (value if cell.role == "student" else 1.0) * cell.temperature**0.4
        row = EvaluationRow(
            cell.role, cell.sampler, cell.nfe, 1.0, 0.0, 8, "float64", "j", ppl, (ppl, ppl), ppl,
            entropy, (4.0, 4.0), 5.0, 7.0, 0.9, 0.01 * cell.nfe, 1.0, 1.0, 0, "machine",
        )  # fmt: skip
        kl = value if "exact" in str(self.folder) else math.nan
        return replace(row, kl=kl, joint_kl=value - 0.1 if cell.joint else math.nan, pair_kl=value / 10)

    def joint_kl(self, cell):
        return 80 * self.figures(cell) / cell.nfe

    def record(self, cell):
        return {"intended_nfe": 4, "workers": 2}

    def cost_file(self, run):
        return self.folder / "costs" / f"{type(run.config).__name__}-{run.config.seed}.json"


@pytest.fixture
def make_study(stand_ins, tmp_path, monkeypatch):
    """Function that makes a ``FormulaStudy`` of a scale with recorded costs."""
    monkeypatch.setattr(cost, "memory", lambda *_: cost.Memory(12e6, 345_678.0))

    def of(scale, budgets=(2e6, 2e6)):
        study = FormulaStudy(tmp_path / scale, Sampling(8, "j"))
        for kind, passes in zip(("DistillConfig", "StandInConfig"), budgets, strict=True):
            for seed in range(3):
                cost._write(study.folder / "costs" / f"{kind}-{seed}.json", cost.Cost(passes, 100.0 + seed))
        return study

    return of


def line(lines, start):
    """Cells of the only row of a table that begins with ``start``."""
    (match,) = [row for row in "\n".join(lines).splitlines() if row.startswith(start)]
    return [cell.strip() for cell in match.split("|")[1:-1]]


def test_all_selects_the_methods_with_a_recipe_for_the_scale_and_didi_first(stand_ins):
    assert list(method_plan("exact", ["all"], 1).configs) == ["didi", "stand-in", "uniform-stand-in", "one-stand-in"]
    assert list(method_plan("markov", ["all"], 1).configs) == ["didi", "stand-in"]
    plan = method_plan("exact", ["stand-in", "stand-in"], 2)
    assert list(plan.configs) == ["stand-in"]
    assert plan.reference == "stand-in"
    assert plan.configs["stand-in"] == VARIANTS["exact", "stand-in"]


def test_students_are_trained_with_the_unchanged_recipe_and_every_seed(stand_ins):
    plan = method_plan("exact", ["didi"], 3)
    assert [run.config for run in plan.runs("didi")] == [replace(DISTILL["exact"], seed=seed) for seed in range(3)]


def test_every_process_has_its_samplers_and_every_teacher_its_curve(stand_ins):
    curves = method_plan("exact", ["all"], 1).curves
    assert [(curve.name, curve.sampler, curve.nfes[-1]) for curve in curves] == [
        ("didi", "ancestral", 128),
        ("stand-in", "ancestral", 128),
        ("uniform-stand-in", "ancestral", 32),
        ("uniform-stand-in, greedy-tail", "greedy-tail", 32),
        ("one-stand-in", "one-step", 1),
        ("teacher exact", "ancestral", 128),
        ("teacher exact-duo", "ancestral", 32),
    ]
    assert curves[0].nfes == ALL_NFES
    assert curves[4].nfes == (1,)
    assert {cell.role for cell in curves[0].cells(4)} == {"student"}
    assert {cell.role for cell in curves[5].cells(4)} == {"teacher"}
    assert len(curves[5].cells(4)) == 1


def test_a_teacher_that_is_not_bundled_is_a_run_of_its_recipe(stand_ins):
    plan = method_plan("exact", ["uniform-stand-in"], 2)
    teacher = Run(PRETRAIN["exact-duo"])
    assert plan.teachers == {"uniform-stand-in": teacher}
    assert {run.teacher for run in plan.runs("uniform-stand-in")} == {teacher}
    (teacher,) = method_plan("tiny", ["uniform-stand-in"], 1).teachers.values()
    assert (teacher.config.recipe, teacher.config.loop.steps) == ("tiny-news-duo", 1200)


def test_an_unavailable_teacher_is_refused(stand_ins, monkeypatch):
    monkeypatch.setitem(VARIANTS, ("exact", "stand-in"), as_kind(StandInConfig, DISTILL["exact"], teacher="exact-9"))
    with pytest.raises(UsageError, match="that of stand-in names 'exact-9': leave the method out"):
        method_plan("exact", ["stand-in"], 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure1", "--scale", "exact", "--methods", "diddi"], "or all; got 'diddi'; did you mean 'didi'?"),
        (["figure1", "--scale", "markov", "--methods", "elbo"], "some of didi, or all; got 'elbo'"),
        (["figure1", "--scale", "paper", "--methods", "all"], "at the scales exact, markov, tiny; got --scale paper"),
        (["table2", "--scale", "exact", "--methods", "didi"], "one of figure1, figure3, table1 or all; got 'table2'"),
        (["table1", "--scale", "exact", "--methods", "didi", "--teacher", "exact"], "--teacher is not read with"),
        (["table1", "--scale", "tiny", "--methods", "didi", "--peers", "prose"], "--peers is not read with --methods"),
        (["table1", "--scale", "exact", "--methods", "didi", "--seeds", "0"], "--seeds is 1 or more; got 0"),
    ],
)
def test_wrong_use_is_refused_in_one_line_before_any_work(tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(Study, "complete", lambda *_: pytest.fail("work began"))
    with pytest.raises(UsageError) as refused:
        command.reproduce([*words, "--out", str(tmp_path / "study")])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_methods_at_scale_exact_are_compared_by_exact_divergences(make_study):
    plan = method_plan("exact", ["didi", "stand-in"], 3)
    lines = method_tables(plan, make_study("exact"))
    assert lines[0].startswith("| KL, nats | 1 move | 2 moves |")
    assert line(lines, "| didi | 1.0100 [")[:3] == ["didi", "1.0100 [0.985, 1.035]", "0.5050 [0.493, 0.517]"]
    assert line(lines, "| teacher exact |")[:3] == ["teacher exact", "1.0000", "0.5000"]
    assert line(lines, "| stand-in | -")[1] == "-0.5050 [-0.517, -0.493] *lower*"
    assert line(lines, "| stand-in | 2.00") == ["stand-in", "2.00", "101", "12", "345,678"]
    assert "perplexity" not in "\n".join(lines)


@pytest.mark.slow
def test_a_comparison_is_with_the_reference_at_the_same_number_of_moves(make_study):
    plan = method_plan("exact", ["stand-in", "didi"], 3)  # didi is the reference in any order
    lines = method_tables(plan, make_study("exact"))
    assert sum(row.startswith("| didi |") for row in lines) == 2  # quality and cost
    assert line(lines, "| stand-in | -")[8].startswith(f"{-0.505 / 128:.4f} [")


@pytest.mark.slow
def test_methods_at_scale_markov_are_compared_by_joint_and_pair_divergences(make_study):
    plan, results = method_plan("markov", ["didi", "stand-in"], 3), make_study("markov")
    assert all(cell.joint for cell in plan.cells)
    lines = method_tables(plan, results)
    assert [row.split("|")[1].strip() for row in lines if "| 1 move |" in row] == [
        "joint KL, nats", "KL of pairs, nats", "perplexity / entropy", ""
    ]  # fmt: skip
    drawn = curves(plan, rows_of(plan, results), measures(plan, results)[0], lambda rows: float(rows[0].nfe))
    assert measures(plan, results)[0] == JOINT
    assert drawn[0].means[0] == pytest.approx(0.91)


@pytest.mark.slow
def test_methods_at_scale_tiny_are_compared_at_the_entropy_of_the_teacher(make_study):
    plan, results = method_plan("tiny", ["didi", "stand-in"], 3), make_study("tiny")
    assert {(cell.role, cell.nfe) for cell in plan.frontier} == {("teacher", 128)}
    assert [cell.temperature for cell in plan.frontier][::10] == [0.4, 1.5]
    assert set(plan.frontier) <= set(plan.cells)
    lines = method_tables(plan, results)
    assert line(lines, "| didi | 1.01 [")[3].startswith("0.25 [")  # 100 / 4 moves, over 100 at that entropy
    assert line(lines, "| stand-in | 0.50 [0.50, 0.50] *lower* |")[3] == "0.50 [0.50, 0.50] *lower*"
    assert "divided by that of didi at the same number of moves" in "\n".join(lines)


@pytest.mark.slow
def test_joint_divergences_at_scale_tiny_are_from_a_trained_network(make_study):
    plan, results = method_plan("tiny", ["didi", "stand-in"], 3), make_study("tiny")
    cells = plan.joint_cells
    assert list(cells) == ["didi", "stand-in", "teacher tiny-news"]
    assert all(list(by_nfe) == [1, 2, 4, 8] for by_nfe in cells.values())
    joint_cells = [cell for by_nfe in cells.values() for of_seeds in by_nfe.values() for cell in of_seeds]
    assert {*joint_cells} < {*plan.cells}
    (reference,) = {cell.reference for cell in joint_cells}
    assert (reference.config.recipe, reference.config.loop.steps) == ("tiny-news-ar", 1200)
    lines = method_tables(plan, results)
    assert line(lines, "| didi | 80.80")[4].startswith("10.1000 [")
    assert line(lines, "| stand-in | 40.40")[4].startswith("5.0500 [")
    assert line(lines, "| stand-in | -40.40")[4].startswith("-5.0500 [")
    assert line(lines, "| stand-in | -40.40")[4].endswith("*lower*")
    assert line(lines, "| teacher tiny-news | 80.0000 |")[4] == "10.0000"
    assert not method_plan("exact", ["didi"], 1).joint_cells


def test_a_student_of_one_move_has_one_joint_divergence(make_study):
    plan = method_plan("tiny", ["didi", "one-stand-in"], 3)
    assert list(plan.joint_cells["one-stand-in"]) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(("budgets", "is_reported"), [((2e6, 2.1e6), False), ((2e6, 2.3e6), True)])
def test_differing_budgets_are_reported(make_study, budgets, is_reported):
    plan = method_plan("exact", ["didi", "stand-in"], 3)
    lines = heading(plan, make_study("exact", budgets))
    assert any("**Budgets differ by more than 10%**: didi 2.00, stand-in 2.30" in text for text in lines) == is_reported
    assert any(text.startswith("- didi: teacher `exact`, 500 steps, batch 256, 2.00 million") for text in lines)
    assert any("trained for 4 moves; sampler ancestral" in text for text in lines)


@pytest.mark.slow
def test_notes_of_rows_are_printed_once(make_study, monkeypatch):
    plan, results = method_plan("exact", ["didi", "stand-in"], 3), make_study("exact")
    assert not any(row.startswith("Note") for row in method_tables(plan, results))
    original = FormulaStudy.row
    monkeypatch.setattr(
        FormulaStudy, "row", lambda self, cell: replace(original(self, cell), note="n" if cell.nfe < 4 else "")
    )
    lines = method_tables(plan, results)
    assert [row for row in lines if row.startswith("Note")] == [
        f"Note on {name}: n.\n" for name in ("didi", "stand-in", "teacher exact")
    ]


@pytest.mark.slow
def test_curves_have_the_range_of_the_seeds(make_study):
    plan, results = method_plan("exact", ["didi", "stand-in"], 3), make_study("exact")
    first, second, teacher = curves(plan, rows_of(plan, results), KL, lambda rows: rows[0].seconds_per_sequence)
    assert (first.lows[0], first.means[0], first.highs[0]) == pytest.approx((1.0, 1.01, 1.02))
    assert second.group == "stand-in"
    assert first.places[2] == pytest.approx(0.04)
    assert (teacher.is_baseline, first.is_baseline) == (True, False)


def test_passes_are_summed_over_the_steps_between_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert math.isnan(cost.sequence_passes(file))
    rows = [{"step": 20, "sequence_passes": 10.0}, {"step": 20, "validation_nelbo": 1.0},
            {"step": 50, "sequence_passes": 4.0}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 60, "seq')
    assert cost.sequence_passes(file) == 20 * 10 + 30 * 4


def test_the_time_of_a_run_adds_up_over_its_parts(tmp_path, monkeypatch):
    folder, file = RunFolder(tmp_path / "run"), tmp_path / "cost.json"
    clock = iter([0.0, 5.0, 100.0, 103.0, 200.0, 201.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    folder.path.mkdir()

    def stopped():
        with cost.recorded(file, folder):
            folder.log({"step": 1, "sequence_passes": 7.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert cost.read_cost(file) == cost.Cost(7.0, 5.0)
    with cost.recorded(file, folder):
        folder.log({"step": 2, "sequence_passes": 7.0})
    assert cost.read_cost(file) == cost.Cost(14.0, 8.0)
    folder.metrics.unlink()  # the run starts again from the beginning
    with cost.recorded(file, folder):
        pass
    assert cost.read_cost(file).seconds == 1.0


@pytest.mark.slow
def test_cells_with_and_without_a_joint_divergence_are_stored_separately(tmp_path):
    completed = Study(tmp_path, Sampling(16, "markov"), workers=1)
    cells = [Cell("markov", "teacher", nfe=1), Cell("markov", "teacher", nfe=1, joint=True)]
    completed.complete(cells)
    plain, joint = map(completed.row, cells)
    assert math.isnan(plain.joint_kl)
    assert joint.joint_kl > 1
    assert joint.joint_reference == "markov"


@pytest.mark.slow
def test_the_reference_of_a_joint_divergence_is_trained_once_before_the_cells(tmp_path, monkeypatch):
    base = PRETRAIN["exact"]
    loop = replace(base.loop, steps=1, batch_size=4, validation_sequences=4)
    reference = Run(replace(base, recipe="exact-ar", model="autoregressive", loop=loop))
    cells = [JointCell("exact", "teacher", "ancestral", nfe, reference, 16) for nfe in (1, 7)]
    completed = Study(tmp_path / "study", Sampling(16, "exact"), workers=2)
    completed.complete(cells)
    rows = [completed.record(cell)["row"] for cell in cells]
    assert rows[0]["num_samples"] == 16
    assert rows[0]["ci"][0] <= rows[0]["kl"] <= rows[0]["ci"][1]
    assert rows[0]["kl"] != rows[1]["kl"]
    assert completed.joint_kl(cells[1]) == rows[1]["kl"]
    monkeypatch.setattr(study, "train_run", lambda *_: pytest.fail("the reference is trained again"))
    completed.complete(cells)


@pytest.mark.slow
def test_a_second_call_reuses_a_finished_comparison(stand_ins, make_dit, tmp_path, monkeypatch):
    teacher = str(save(Bundle(teacher=make_dit(vocab_size=5, mask_id=4, length=4)), tmp_path / "teacher"))
    base = replace(DISTILL["exact"], teacher=teacher, data=replace(DISTILL["exact"].data, length=4))
    loop = replace(base.loop, steps=2, batch_size=8, log_every=1, validation_sequences=4)
    short = replace(base, loop=loop, discriminator=replace(base.discriminator, warmup_steps=1))
    monkeypatch.setitem(recipes.DISTILL, "exact", short)
    slower = replace(loop, steps=4)
    monkeypatch.setitem(VARIANTS, ("exact", "stand-in"), as_kind(StandInConfig, short, loop=slower))
    monkeypatch.setitem(SCALES, "exact", replace(SCALES["exact"], nfes=(1, 2)))
    monkeypatch.setitem(command.SAMPLING, "exact", Sampling(8, "exact"))
    words = ["figure1", "figure3", "table1", "--scale", "exact", "--methods", "didi", "stand-in", "--seeds", "2"]
    words += ["--workers", "1", "--out", str(folder := tmp_path / "study")]
    command.reproduce(words)
    report = (folder / "report.md").read_text()
    for name in ("figure1-methods", "figure3-methods"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert f"({name}.png)" in report
    assert "**Budgets differ by more than 10%**" in report
    costs = [json.loads(file.read_text()) for file in (folder / "costs").glob("*.json") if ".memory" not in file.name]
    assert len(costs) == 4
    assert all(each["sequence_passes"] > 0 and each["seconds"] > 0 for each in costs)
    needs = [json.loads(file.read_text()) for file in (folder / "costs").glob("*.memory.json")]
    assert len(needs) == 2
    assert all(each["peak_bytes"] > 1e4 and each["num_trained"] > 1e3 for each in needs)
    cells = [json.loads(file.read_text())["row"] for file in (folder / "cells").iterdir()]
    assert len(cells) == 2 * 2 * 2 + 2
    kls = [row["kl"] for row in cells if row["role"] == "teacher" and row["nfe"] == 1]
    assert f"| teacher {teacher} | {kls[0]:.4f} |" in report

    def never(*_):
        raise AssertionError("finished work was repeated")

    for name in ("train_run", "measure"):
        monkeypatch.setattr(study, name, never)
    monkeypatch.setattr(cost, "dry_run", never)
    command.reproduce(words)
    assert (folder / "report.md").read_text() == report


def test_a_didi_student_that_starts_at_random_is_sampled_with_one_move(monkeypatch):
    objective = replace(DISTILL["exact"].objective, moves=1, initial_mask_ratio=0.5)
    one_move = replace(DISTILL["exact"], objective=objective)
    monkeypatch.setattr(recipes, "COMPARED", {"exact": {"didi, 1 move": one_move}})
    (curve,) = [curve for curve in method_plan("exact", ["all"], 1).curves if curve.name == "didi, 1 move"]
    assert (curve.sampler, curve.nfes) == ("one-step", (1,))
