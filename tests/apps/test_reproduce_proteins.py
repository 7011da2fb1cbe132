"""``didi reproduce --scale proteins``: Figures 5, 6 and 7 of given bundles."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from didi.apps.reproduce import command, protein_measure, proteins
from didi.apps.reproduce.protein_claims import claim
from didi.apps.reproduce.protein_examples import chosen_samples
from didi.apps.reproduce.protein_measure import nearest_in_length
from didi.apps.reproduce.protein_plan import ProteinPlan
from didi.apps.reproduce.protein_study import ProteinSampling, ProteinStudy
from didi.data import mmseqs
from didi.data.protein import ProteinData, protein_tokenizer
from didi.data.protein_batches import protein_rows
from didi.diffusion.absorbing import Absorbing
from didi.errors import DidiError, Interrupted, UsageError
from didi.evaluation.protein import measures
from didi.evaluation.protein import row as row_module
from didi.evaluation.protein.autoregressive import load_order_judge
from didi.evaluation.protein.comparison import ScoredSet, compare_sets
from didi.evaluation.protein.controls import CONTROLS, control_sets
from didi.evaluation.protein.interface import ResidueScores
from didi.evaluation.protein.judges import JUDGES
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, load, save
from didi.models.esm2 import Esm2, Esm2Config
from didi.sampling.generate import generate

MOTIF = "MKTAYIAKQR"
LENGTHS, NFES = ("10", "14"), ("2", "8", "64")


def natural(num, length):
    source = random.Random(length)
    return ["".join(MOTIF[(start + n) % 10] for n in range(length)) for start in source.choices(range(10), k=num)]


DATA = ProteinData([["MKTAYIAKQR", "ACDEFGHIKL"], ["WWWWWWWWWW"]], [], [*natural(12, 10), *natural(12, 14)])


class MotifJudge:
    """Share of adjacent residues that are a pair of the motif; ``num_scored`` counts the scored proteins."""

    name, unit, is_higher_better = "motif", "pairs", True
    num_scored = 0

    def score(self, sequences):
        type(self).num_scored += len(sequences)
        return torch.tensor([sum(self.pairs(sequence)) / len(sequence) for sequence in sequences], dtype=torch.float64)

    def pairs(self, sequence):
        return [float(sequence[n : n + 2] in MOTIF * 2) for n in range(len(sequence) - 1)]


class FoldingJudge(MotifJudge):
    """A motif judge with scores of residues and a structure."""

    residue_unit = "pLDDT"

    def residues(self, sequences, frequencies):
        assert sum(frequencies.values()) == pytest.approx(1)
        assert frequencies["W"] == pytest.approx(11 / (30 + 25))
        scores = [
            torch.tensor([100 * x for x in [0.0, *self.pairs(sequence)]], dtype=torch.float64) for sequence in sequences
        ]
        traces = [torch.arange(3 * len(sequence), dtype=torch.float64).view(-1, 3).sin() for sequence in sequences]
        return list(map(ResidueScores, scores, traces))


class AlanineJudge(MotifJudge):
    """The share of alanine."""

    def score(self, sequences):
        return torch.tensor([sequence.count("A") / len(sequence) for sequence in sequences], dtype=torch.float64)


@pytest.fixture(scope="module")
def bundles(randomise, tmp_path_factory):
    """A teacher, two students of it and a student of another recipe."""
    folder, shape = (
        tmp_path_factory.mktemp("proteins"),
        Esm2Config(hidden_size=16, num_blocks=1, num_heads=2, length=16, inner_size=24),
    )
    provenance = {
        "recipe": "swissprot",
        "method": "didi",
        "corpus": "swissprot:first",
        "settings": {"data": {"length": 13}},
    }

    def make(name, role, seed, **changes):
        network = randomise(Esm2(shape), seed)
        made = Bundle(
            **{role: network}, tokenizer=protein_tokenizer(), provenance=provenance | {"seed": seed} | changes
        )
        return str(save(made, folder / name))

    return {
        "teacher": make("teacher", "teacher", 0),
        "first": make("first", "student", 1),
        "second": make("second", "student", 2),
        "other": make("other", "student", 3, recipe="dplm-150m"),
        "unrecorded": make("unrecorded", "teacher", 0, corpus=None),
    }


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace judges and proteins by those of this file, without mmseqs2; returns the calls of ``prepare_proteins``."""
    for judge in (MotifJudge, FoldingJudge, AlanineJudge):
        monkeypatch.setitem(JUDGES, judge.__name__, lambda device, judge=judge: judge())
    calls = []
    monkeypatch.setattr(proteins, "prepare_proteins", lambda *args, **how: calls.append((args, how)) or DATA)
    monkeypatch.setattr(mmseqs, "is_available", lambda: False)
    MotifJudge.num_scored = 0
    return calls


@pytest.fixture
def reproduce(bundles, tmp_path):
    """Function that runs the command and returns the report."""

    def run(*targets, students=("first",), judge="MotifJudge", **flags):
        words = [*(targets or ("all",)), "--scale", "proteins", "--teacher", bundles["teacher"], "--workers", "1"]
        words += ["--judge", judge, "--out", str(tmp_path / "out")]
        words += ["--students", *(bundles[name] for name in students)] if students else []
        for name, values in ({"lengths": LENGTHS, "nfe": NFES, "num_samples": ("8",)} | flags).items():
            words += [f"--{name.replace('_', '-')}", *values]
        command.reproduce(words)
        return (tmp_path / "out" / "report.md").read_text()

    return run


@pytest.fixture
def drawn(monkeypatch):
    """The lengths and numbers of moves that are sampled."""
    calls = []

    def sample(*args, **how):
        calls.append((how["length"], how["nfe"]))
        return generate(*args, **how)

    monkeypatch.setattr(protein_measure, "generate", sample)
    return calls


def tables(report):
    """Rows of each table by the heading before it."""
    rows, heading = {}, ""
    for line in report.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ") and "---" not in line:
            rows.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.slow
def test_the_report_has_every_set_with_its_sampler(reproduce, tmp_path, small, bundles):
    report = reproduce(students=("first", "second"), judge="FoldingJudge", samplers=("ancestral", "reparam"))
    assert small == [(("swissprot:first",), {"min_length": 50, "max_length": 11})]
    for name in ("figure5", "figure6", "figure7"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
        assert f"]({name}.png)" in report
    assert (tmp_path / "out" / "report.html").read_text().count('src="data:image/png;base64,') == 3
    by_heading = tables(report)
    for length in LENGTHS:
        _, *rows = by_heading[f"{length} residues"]
        assert [row[0] for row in rows[:5]] == list(CONTROLS)
        sets = [(row[0], row[1], row[2]) for row in rows[5:]]
        students = ("student 1", "student 2", "students, mean of 2")
        assert sets == [
            *(("teacher", sampler, nfe) for sampler in ("ancestral", "reparam") for nfe in NFES),
            *((student, sampler, nfe) for sampler in ("ancestral", "reparam") for nfe in NFES for student in students),
        ]
        assert all(row[4] == length for row in rows)
        assert {row[3] for row in rows[:5]} == {"–"}
        assert all(row[-3::2] == ["–", "–"] for row in rows)  # without mmseqs2
        alanine = next(row for row in rows if row[0] == "poly-alanine")
        assert alanine[-2] == "0.00 [0.00, 0.00]"
        assert all(0.2 < float(row[-2].split()[0]) < 1 for row in rows if row is not alanine)
    assert "need the program mmseqs, which is not on PATH" in report
    assert f"Student 2: `{bundles['second']}`, seed 2" in report
    assert [row[0] for row in by_heading["didi reproduce --scale proteins"][1:]] == [
        "natural over mutated", "mutated over shuffled", "mutated over uniform", "natural over poly-alanine",
    ]  # fmt: skip
    assert list(by_heading)[-1] == "Claim: students against the teacher"
    compared = by_heading["Claim: students against the teacher"][1:]
    settings = {tuple(row[:3]) for row in compared}
    samplers = ("ancestral", "reparam")
    residues = ("all lengths", *LENGTHS)
    assert settings == {(f"8, {a}", f"64, {b}", length) for a in samplers for b in samplers for length in residues}
    assert all(row[-1].startswith(("holds; novelty not", "*failed*: ")) for row in compared)


@pytest.mark.slow
def test_a_study_of_an_earlier_version_is_continued(reproduce, monkeypatch, drawn, tmp_path):
    flags = {"students": ("first",), "nfe": ("8", "64"), "lengths": ("10",)}
    expected = reproduce("figure5", **flags)
    settings = tmp_path / "out" / "sampling.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "network"}))
    for file in (tmp_path / "out" / "cells").glob("*.json"):
        record = json.loads(file.read_text())
        del record["row"]["pair_distance"], record["row"]["pair_distance_ci"]
        file.write_text(json.dumps(record | {"identities": [0.5] * len(record["sequences"])}))
    drawn.clear()
    rows = tables(reproduce("figure5", **flags))["10 residues"][1:]
    assert {row[-2] for row in rows} == {"–"}
    monkeypatch.setattr(mmseqs, "is_available", lambda: True)
    monkeypatch.setattr(measures, "nearest_identities", lambda queries, targets: [0.5] * len(queries))
    monkeypatch.setattr(row_module, "cluster_diversity", lambda sequences: 0.5)
    rows = tables(reproduce("figure5", **flags))["10 residues"][1:]
    assert [row[-2] for row in rows] == [row[-2] for row in tables(expected)["10 residues"][1:]]
    assert {row[-3] for row in rows} == {"0.50"}
    assert not drawn


@pytest.mark.slow
def test_samples_are_those_of_the_requested_settings(reproduce, tmp_path, bundles):
    reproduce("figure5", students=("second",), samplers=("reparam",), lengths=("10",))
    for role, name in (("teacher", "teacher"), ("student", "second")):
        for nfe in (2, 64):
            (file,) = (tmp_path / "out" / "cells").glob(f"{name}-*-{role}-reparam-length10-{nfe}.json")
            record = json.loads(file.read_text())
            seed = record["sampling"]["seed"]
            expected = generate(
                load(bundles[name]), num_samples=8, nfe=nfe, seed=seed, length=10, role=role, sampler="reparam"
            )
            assert record["sequences"] == expected.texts
            assert {len(sequence) for sequence in record["sequences"]} == {10}
            assert (record["row"]["sampler"], record["row"]["nfe"]) == ("reparam", nfe)
            assert record["scores"] == MotifJudge().score(expected.texts).tolist()
            assert record["row"]["score"] == pytest.approx(sum(record["scores"]) / 8)


@pytest.mark.slow
def test_controls_are_the_held_out_proteins_of_the_nearest_length(reproduce, tmp_path):
    assert nearest_in_length(["A" * 5, "C" * 9, "D" * 7, "E" * 7], 8, 3) == ["C" * 9, "D" * 7, "E" * 7]
    reproduce("figure5")
    for length in (10, 14):
        expected = control_sets(natural(12, length)[:8], seed=length)
        for name in CONTROLS:
            record = json.loads((tmp_path / "out" / "cells" / f"control-{name}-length{length}.json").read_text())
            assert record["sequences"] == expected[name]
            assert (record["row"]["name"], record["row"]["sampler"], record["row"]["nfe"]) == (name, "", 0)


@pytest.mark.slow
def test_finished_cells_are_not_measured_again(reproduce, tmp_path, drawn, monkeypatch):
    report = reproduce("figure6")
    assert set(drawn) == {(10, 8), (14, 8)}
    scored = MotifJudge.num_scored
    assert scored == 2 * 5 * 8 + 2 * 8
    drawn.clear()
    with monkeypatch.context() as patched:
        patched.setattr(protein_measure, "measure", lambda cell, study: pytest.fail(f"{cell} is measured again"))
        assert reproduce("figure6") == report
    assert (drawn, MotifJudge.num_scored) == ([], scored)
    reproduce("figure5", "figure7")
    assert len(drawn) == 2 * 3 * 2 - 2
    drawn.clear()
    (cell,) = (tmp_path / "out" / "cells").glob("first-*-length14-8.json")
    cell.unlink()
    reproduce("all")
    assert drawn == [(14, 8)]


@pytest.mark.slow
def test_a_study_that_is_stopped_continues(reproduce, monkeypatch, drawn):
    sample, calls = protein_measure.generate, []

    def stopping(*args, **how):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sample(*args, **how)

    monkeypatch.setattr(protein_measure, "generate", stopping)
    with pytest.raises(
        Interrupted, match=r"^stopped; finished work is kept in .*out: run the same command to continue$"
    ):
        reproduce("figure5")
    reproduce("figure5")
    assert len(drawn) == len(set(drawn)) * 2 == 12
    assert len(calls) == 13


@pytest.mark.slow
def test_a_judge_that_does_not_order_the_controls_stops_the_command(reproduce, drawn, tmp_path):
    with pytest.raises(DidiError, match=r"^a judge orders the controls.*natural is .* better than poly-alanine"):
        reproduce(judge="AlanineJudge")
    assert not drawn
    assert not (tmp_path / "out" / "report.md").exists()
    with pytest.raises(UsageError, match="controls of 8 proteins or more; got 2"):
        reproduce(lengths=("10",), num_samples=("2",), out=(str(tmp_path / "few"),))


@pytest.mark.slow
def test_a_folder_of_another_study_is_refused(reproduce, monkeypatch):
    reproduce("figure6")
    with pytest.raises(UsageError, match=r"holds cells of another num_samples .*: choose another --out"):
        reproduce("figure6", num_samples=("9",))
    with pytest.raises(UsageError, match="holds cells of another judge "):
        reproduce("figure6", judge="FoldingJudge")
    monkeypatch.setattr(proteins, "prepare_proteins", lambda *args, **how: replace(DATA, test=DATA.test[1:]))
    with pytest.raises(UsageError, match="holds cells of another proteins "):
        reproduce("figure6")


@pytest.mark.slow
def test_novelty_is_measured_later_by_one_search_without_new_samples(reproduce, monkeypatch, drawn, tmp_path):
    reproduce("figure5")
    num_scored = MotifJudge.num_scored
    drawn.clear()
    monkeypatch.setattr(mmseqs, "is_available", lambda: True)
    searches = []

    def nearest(queries, targets):
        searches.append((queries, targets))
        return [0.75 if query in natural(12, 10) else 0.25 for query in queries]

    monkeypatch.setattr(measures, "nearest_identities", nearest)
    monkeypatch.setattr(row_module, "cluster_diversity", lambda sequences: 0.5)
    report = reproduce("figure5")
    assert (drawn, MotifJudge.num_scored) == ([], num_scored)
    cells = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("*.json")]
    ((queries, targets),) = searches
    assert targets == ["MKTAYIAKQR", "ACDEFGHIKL", "WWWWWWWWWW"]
    assert len(queries) == len(set(queries))
    assert set(queries) == {sequence for cell in cells for sequence in cell["sequences"]}
    rows = tables(report)["10 residues"][1:]
    assert rows[0][-3::2] == ["0.50", "0.75 [0.75, 0.75]"]
    assert all(row[-3::2] == ["0.50", "0.25 [0.25, 0.25]"] for row in rows[5:])
    assert "which is not on PATH" not in report
    assert all("novelty" not in row[-1] for row in tables(report)["Claim: students against the teacher"][1:])
    reproduce("figure5")
    assert len(searches) == 1
    reproduce("figure5", nfe=("4", *NFES))
    assert {len(query) for query in searches[1][0]} == {10, 14}
    assert len(searches[1][0]) <= 2 * 2 * 8  # samples at the new number of moves alone


@pytest.mark.slow
def test_the_mean_of_the_students_has_an_interval_over_seeds(reproduce, tmp_path):
    report = reproduce("figure5", students=("first", "second"), lengths=("10",))
    means = [
        json.loads(next((tmp_path / "out" / "cells").glob(f"{name}-*-student-ancestral-length10-8.json")).read_text())
        for name in ("first", "second")
    ]
    first, second = (record["row"]["score"] for record in means)
    half = 12.7062 * abs(first - second) / 2
    (row,) = [row for row in tables(report)["10 residues"] if row[0].startswith("students") and row[2] == "8"]
    mean = (first + second) / 2
    assert row[5] == f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


@pytest.mark.slow
def test_the_comparison_takes_all_students_at_few_moves_and_the_teacher_at_64(reproduce, tmp_path, bundles):
    report = reproduce("figure5", students=("first", "second"))

    def scores(name, role, length, nfe):
        (file,) = (tmp_path / "out" / "cells").glob(f"{name}-*-{role}-ancestral-length{length}-{nfe}.json")
        return json.loads(file.read_text())["row"]["score"]

    rows = tables(report)["Claim: students against the teacher"][1:]
    assert [row[:3] for row in rows] == [
        ["8, ancestral", "64, ancestral", residues] for residues in ("all lengths", "10", "14")
    ]
    by_length = {
        length: sum(scores(name, "student", length, 8) for name in ("first", "second")) / 2
        - scores("teacher", "teacher", length, 64)
        for length in LENGTHS
    }
    assert [row[3].split()[0] for row in rows[1:]] == [f"{by_length[length]:+.3f}" for length in LENGTHS]
    assert rows[0][3].split()[0] == f"{sum(by_length.values()) / 2:+.3f}"
    short = reproduce("figure5", students=("first", "second"), nfe=("2", "8"))
    assert "This comparison needs --nfe with 8 or 16 for the students and 64 for the teacher." in short
    assert "*failed*" not in short


class FixedStudy(ProteinStudy):
    """A study with fixed sequences and scores."""

    def record(self, cell):
        sign = 1 if self.sampling.judge == "higher" else -1
        if cell.role == "teacher":
            sequences, scores = ["ACAC", "ADEF", "ACDE"], [1.0, 3.0, 2.0]
        else:
            sequences, scores = [f"{cell.bundle}AAA", f"{cell.bundle}CCC"], [5.0 + (cell.bundle == "E"), 4.0]
        judge = {"name": "j", "unit": "u", "is_higher_better": sign == 1}
        return {"sequences": sequences, "scores": [sign * score for score in scores], "judge": judge}


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_examples_are_the_worst_of_the_teacher_and_the_best_of_all_students(tmp_path, direction):
    study = FixedStudy(tmp_path, ProteinSampling(3, direction))
    plan = ProteinPlan("teacher", ("D", "E"), (4, 5), (8, 16, 64))
    worst = chosen_samples(study, plan.teacher_examples, is_best=False)
    assert [(sample.cell.length, sample.cell.nfe) for sample in worst] == [(4, 8), (4, 16), (5, 8), (5, 16)]
    sign = 1 if direction == "higher" else -1
    assert {(sample.number, sample.residues, sample.score, sample.num_candidates) for sample in worst} == {
        (0, "ACAC", sign * 1, 3)
    }
    best = chosen_samples(study, plan.student_examples, is_best=True)
    assert {(sample.cell.bundle, sample.residues, sample.score, sample.num_candidates) for sample in best} == {
        ("E", "EAAA", sign * 6, 4)
    }


@pytest.mark.slow
def test_examples_are_called_chosen_and_shown_with_their_scores(reproduce, tmp_path):
    report = reproduce("figure6", "figure7", judge="FoldingJudge")
    assert (
        "Chosen, not random: for each length and number of moves, the sample of the teacher with the lowest score"
        in report
    )
    assert "the sample of the students with the highest score" in report
    examples = [json.loads(file.read_text()) for file in (tmp_path / "out" / "cells").glob("examples-*.json")]
    assert len(examples) == 2
    for example in examples:
        assert len(example["sequences"]) == 2
        assert [len(scores) for scores in example["residue_scores"]] == [10, 14]
        assert [len(trace) for trace in example["traces"]] == [10, 14]
        assert example["residue_unit"] == "pLDDT"
        for sequence in example["sequences"]:
            assert sequence in report
    assert "Traces are the alpha carbons of the predicted structure." in report


@pytest.mark.slow
@pytest.mark.parametrize("part", ["scores", "alpha_carbons"])
def test_scores_and_positions_of_residues_that_are_not_finite_are_refused(reproduce, monkeypatch, part, tmp_path):
    residues = FoldingJudge.residues

    def broken(self, sequences, frequencies):
        first, *others = residues(self, sequences, frequencies)
        getattr(first, part)[-1] = math.nan
        return [first, *others]

    monkeypatch.setattr(FoldingJudge, "residues", broken)
    what = {"scores": "scores", "alpha_carbons": "positions"}[part]
    with pytest.raises(DidiError, match=rf"^{what} of residues are finite; the judge motif gave one that is not"):
        reproduce("figure7", judge="FoldingJudge")
    assert not list((tmp_path / "out" / "cells").glob("examples-*"))


@pytest.mark.slow
def test_a_judge_of_whole_proteins_has_examples_without_colours(reproduce, tmp_path):
    report = reproduce("figure7")
    assert "The judge has no scores of residues. The judge predicts no structure." in report
    assert (tmp_path / "out" / "figure7.png").stat().st_size > 5_000


def test_the_plan_has_each_cell_once_and_the_teacher_unguided():
    plan = ProteinPlan("t", ("a", "b"), (10, 14), (8, 16, 64, 512), ("guided", "ancestral"))
    cells = plan.cells
    assert len(cells) == len(set(cells)) == 8 * (1 + 2 * 2)
    assert {cell.sampler for cell in cells if cell.role == "teacher"} == {"ancestral"}
    assert {cell.sampler for cell in cells if cell.role == "student"} == {"guided", "ancestral"}
    assert {cell.nfe for cell in (*plan.teacher_examples, *plan.student_examples)} == {8, 16}
    assert {cell.sampler for cell in plan.student_examples} == {"guided"}
    assert replace(plan, nfes=(1, 2, 3, 4)).example_nfes == (1, 2, 3)
    assert {(cell.control, cell.length) for cell in plan.controls} == {(name, n) for name in CONTROLS for n in (10, 14)}


WRONG = [
    ({"students": ()}, "reproduce --scale proteins needs --students"),
    ({"judge": "motiv"}, "a judge of proteins is one of "),
    ({"lengths": ("10", "15")}, r"--lengths are 1 to 14 residues, which the teacher .* has positions for; got 15"),
    ({"lengths": ("0",)}, "--lengths is 1 or more; got 0"),
    ({"nfe": ("0",)}, "--nfe is 1 or more; got 0"),
    ({"num_samples": ("0",)}, "--num-samples is 2 or more; got 0"),
    ({"samplers": ("first-hitting",)}, "--samplers have a number of moves; first-hitting does not follow --nfe"),
    ({"samplers": ("guided",)}, "guided sampling needs a discriminator"),
    ({"samplers": ("ancestrall",)}, "ancestrall"),
    ({"students": ("first", "first")}, "different training seeds of one method; got one bundle twice"),
    ({"students": ("first", "other")}, "got the recipes dplm-150m, swissprot: give those of one recipe"),
    ({"students": ("teacher",)}, "has no student"),
    ({"seeds": ("3",)}, "--seeds is not read with --scale proteins"),
    ({"methods": ("all",)}, "--methods is not read with --scale proteins"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG)
def test_wrong_use_is_refused_in_one_line(reproduce, flags, message):
    with pytest.raises(UsageError, match=message) as error:
        reproduce("figure5", **flags)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_bundles_and_targets_that_do_not_fit_are_refused(reproduce, bundles, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    start = ["figure5", "--scale", "proteins", *out]
    judged = [*start, "--students", bundles["first"], "--judge", "MotifJudge", "--lengths", "10", "--teacher"]
    for words, message in (
        (start, "needs --teacher and --students and --judge"),
        ([*judged, "markov"], "takes bundles of proteins; markov is not one"),
        ([*judged, bundles["unrecorded"]], "give --corpus"),
        (["figure1", *start[1:]], "a target of --scale proteins is one of figure5, figure6, figure7 or all"),
        (
            ["figure1", "--scale", "markov", "--num-samples", "8", *out],
            "--num-samples is read only at --scale proteins",
        ),
        (["figure5", "--scale", "markov", *out], "got 'figure5'"),
    ):
        with pytest.raises(UsageError, match=message):
            command.reproduce(words)
    assert reproduce("figure6", corpus=("vh",))


def test_a_claim_names_the_parts_that_fail():
    equal = [ScoredSet(*torch.ones(4, 4).double())]
    comparison = compare_sets([equal], equal)
    assert claim(comparison) == "*failed*: score"
    better = replace(comparison, difference=1.0, difference_ci=(0.5, 1.5))
    assert claim(better) == "holds"
    assert claim(replace(better, entropy_ratio=0.94)) == "*failed*: entropy"
    nearer = replace(better, entropy_ratio=0.94, identity_difference=0.1, identity_difference_ci=(0.01, 0.2))
    assert claim(nearer) == "*failed*: entropy, novelty"
    assert claim(replace(better, distance_ratio=0.5, distance_ratio_ci=(0.4, 0.6))) == "*failed*: diversity"
    unmeasured = replace(better, identity_difference=math.nan)
    assert claim(unmeasured) == "holds; novelty not measured"
    assert claim(replace(better, is_higher_better=False)) == "*failed*: score"


@pytest.fixture(scope="module")
def order_judge(tmp_path_factory):
    """The bundle of an autoregressive network that has learned the motif."""
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=33, mask_id=32, length=60, hidden_size=16, num_blocks=1, num_heads=2)
    network, rows = AutoregressiveLM(shape), protein_rows(natural(12, 40))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        loss = network.nll(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bundle = Bundle(autoregressive=network.eval(), tokenizer=protein_tokenizer(), process=Absorbing(32))
    return str(save(bundle, tmp_path_factory.mktemp("judge") / "bundle"))


@pytest.mark.slow
def test_worker_processes_take_an_autoregressive_judge_and_guided_students(
    randomise, make_discriminator, order_judge, tmp_path, monkeypatch
):
    shape = Esm2Config(hidden_size=16, num_blocks=1, num_heads=2, length=42, inner_size=24)
    teacher, student = (randomise(Esm2(shape), seed) for seed in (0, 1))
    tokenizer, provenance = protein_tokenizer(), {"corpus": "vh", "seed": 0}
    teacher_path = save(Bundle(teacher=teacher, tokenizer=tokenizer, provenance=provenance), tmp_path / "teacher")
    made = Bundle(
        student=student, discriminator=make_discriminator(teacher), tokenizer=tokenizer, provenance=provenance
    )
    student_path = save(made, tmp_path / "student")
    data = ProteinData([natural(2, 40)], [], natural(12, 40))
    monkeypatch.setattr(proteins, "prepare_proteins", lambda *args, **how: data)
    monkeypatch.setenv("PATH", "")  # the workers have no mmseqs2
    words = ["all", "--scale", "proteins", "--teacher", str(teacher_path), "--students", str(student_path)]
    words += ["--judge", order_judge, "--lengths", "40", "--nfe", "8", "64", "--num-samples", "8", "--workers", "2"]
    command.reproduce([*words, "--samplers", "guided", "ancestral", "--out", str(tmp_path / "out")])
    report = (tmp_path / "out" / "report.md").read_text()
    rows = tables(report)["40 residues"][6:]
    assert {(row[0], row[1]) for row in rows} == {
        ("teacher", "ancestral"), ("student 1", "guided"), ("student 1", "ancestral"),
    }  # fmt: skip
    assert "Colours are scores of residues, nats above the log frequency of the residue." in report
    (file,) = (tmp_path / "out" / "cells").glob("student-*-guided-length40-8.json")
    record = json.loads(file.read_text())
    assert record["discriminator_passes"] > 0
    header = tables(report)["40 residues"][0]
    assert header[3:5] == ["network passes", "discriminator passes"]
    passes = {(row[1], row[2]): row[3:5] for row in rows if row[0] == "student 1"}
    assert passes["guided", "8"] == [f"{record['network_passes']:.1f}", f"{record['discriminator_passes']:.1f}"]
    assert float(passes["ancestral", "8"][0]) > 7
    assert passes["ancestral", "8"][1] == "0.0"
    scores = load_order_judge(Path(order_judge)).score(record["sequences"])
    assert record["scores"] == pytest.approx(scores.tolist())
    assert record["identities"] is None


def test_teacher_and_students_have_the_splits_of_one_corpus_and_length(monkeypatch):
    calls = []

    def prepare(name, **lengths):
        calls.append((name, lengths["max_length"]))
        return ProteinData([], [], [])

    def provenance(corpus, length):
        return {"corpus": corpus, "settings": {"data": {"length": length}}}

    monkeypatch.setattr(proteins, "prepare_proteins", prepare)
    network = Esm2(Esm2Config(hidden_size=16, num_blocks=1, num_heads=2, length=64, inner_size=24))
    teacher, converted = Bundle(teacher=network, provenance=provenance("vh", 50)), Bundle(teacher=network)
    proteins._data(None, teacher, [provenance("vh", 50), {}])
    proteins._data("vh", converted, [provenance("vh", 40)])
    proteins._data("vh", converted, [{}])
    assert calls == [("vh", 48), ("vh", 38), ("vh", 62)]
    with pytest.raises(UsageError, match="the teacher has vh, a student swissprot: give students of that corpus"):
        proteins._data(None, teacher, [provenance("swissprot", 50)])
    with pytest.raises(UsageError, match=r"trained with one data\.length; got 40, 50"):
        proteins._data(None, teacher, [provenance("vh", 40)])


@pytest.mark.slow
def test_a_judge_folder_that_is_replaced_during_a_study_is_refused(order_judge, tmp_path):
    folder = tmp_path / "judge"
    shutil.copytree(order_judge, folder)
    study = ProteinStudy(tmp_path / "study", ProteinSampling(2, str(folder)))
    study.begin(ProteinData([], [], ["MKTAYI"]))
    assert protein_measure._study_judge(study).unit
    protein_measure.clear_caches()
    bundle = load(order_judge)
    with torch.no_grad():
        next(bundle.autoregressive.parameters())[0] += 1
    shutil.rmtree(folder)
    save(bundle, folder)
    with pytest.raises(DidiError, match=r"^judge .* has changed since this study began: choose another --out$"):
        protein_measure._study_judge(study)
    with pytest.raises(UsageError, match="holds cells of another judge "):
        study.begin(ProteinData([], [], ["MKTAYI"]))


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["float32", "bfloat16"])
def test_networks_are_sampled_in_the_requested_number_format(reproduce, monkeypatch, numerics, tmp_path):
    dtypes = set()

    def sample(bundle, *args, options, **how):
        trunk = (bundle.teacher or bundle.student).blocks
        dtypes.update(module.weight.dtype for module in trunk.modules() if isinstance(module, torch.nn.Linear))
        return generate(bundle, *args, options=options, **how)

    monkeypatch.setattr(protein_measure, "generate", sample)
    report = reproduce("figure5", network=(numerics,), nfe=("2",), lengths=("10",))
    assert dtypes == {getattr(torch, numerics)}
    assert f"networks in {numerics}, draws in float64" in report
    other = "int8" if numerics == "float32" else "float32"
    with pytest.raises(UsageError, match=r"holds cells of another network "):
        reproduce("figure5", network=(other,), nfe=("2",), lengths=("10",))
