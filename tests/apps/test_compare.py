"""``didi compare``: evaluations in two or more folders are compared in pairs and at equal entropy."""

import json
import math

import pytest
import torch

from didi.apps.compare import run_compare
from didi.errors import UsageError
from didi.evaluation.perplexity import Scores
from didi.evaluation.report import read_sets, write_metrics, write_samples
from didi.evaluation.row import EvaluationRow, SampleSet


def sample_set(nll, role="student", nfe=8, temperature=1.0, **fields):
    """A set whose entropy is 4 nats at temperature 1, and whose perplexity falls with the temperature."""
    nll = torch.as_tensor(nll, dtype=torch.float64) + 20 * (temperature - 1)
    ppl, entropy = float((nll.sum() / 10 / len(nll)).exp()), 4.0 + 2 * (temperature - 1)
    values = {"sampler": "ancestral" if nfe else "", "precision": "float64", "judge": "j", "seed": 0} | fields
    row = EvaluationRow(
        role=role, nfe=nfe, network_passes=8.0, discriminator_passes=0.0, num_samples=len(nll), gen_ppl=ppl,
        gen_ppl_ci=(ppl, ppl), gen_ppl_mean_sample=ppl, entropy=entropy, entropy_ci=(entropy, entropy),
        corpus_entropy=5.0, bigram_entropy=7.0, distinct_4=0.9, seconds_per_sequence=math.nan, tokens_per_second=1.0,
        nelbo=1.0, machine="m", temperature=temperature, **values,
    )  # fmt: skip
    texts = [f"{role}\u2028{i}" for i in range(len(nll))]
    return SampleSet(row, texts, Scores(nll, torch.full((len(nll),), 10)), torch.full((len(nll),), entropy).double())


def write_evaluation(folder, *sets):
    """Write the files of ``didi evaluate`` to a new folder; returns the sets."""
    folder.mkdir()
    write_metrics([each.row for each in sets], folder)
    write_samples(sets, folder)
    return sets


def test_sets_are_read_as_they_were_written(tmp_path):
    sets = write_evaluation(tmp_path / "a", sample_set([30.0, 31.0], "data", nfe=0), sample_set([30.0, math.inf, 32.0]))
    for read, written in zip(read_sets(tmp_path / "a"), sets, strict=True):
        assert read.row.record() == written.row.record()
        assert read.texts == written.texts
        assert read.scores.nll.tolist() == written.scores.nll.tolist()
        assert torch.equal(read.scores.num_tokens, written.scores.num_tokens)
        assert torch.equal(read.entropies, written.entropies)


def sweep(level, temperatures):
    """Sets of data and of two roles, with two numbers of moves at each temperature; ``level`` is added to every NLL."""
    base = torch.tensor([30.0, 31.0, 32.0]) + level
    levels = {("teacher", 4): 8.0, ("teacher", 8): 6.0, ("student", 4): 4.0, ("student", 8): 0.0}
    return [
        sample_set([28.0, 28.0, 28.0], "data", nfe=0),
        *(
            sample_set(base + more, role, nfe, temperature)
            for temperature in temperatures
            for (role, nfe), more in levels.items()
        ),
    ]


@pytest.mark.slow
def test_sets_with_equal_settings_are_compared_in_pairs_and_at_equal_entropy(tmp_path, capsys):
    write_evaluation(tmp_path / "a", *sweep(0.0, [0.8, 0.9, 1.0]))
    write_evaluation(tmp_path / "b", *sweep(1.0, [0.7, 0.8, 0.9, 1.0]))
    run_compare([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    table = (tmp_path / "c" / "compare.md").read_text()
    assert capsys.readouterr().out.startswith("| | against |")
    ratio = f"{math.exp(0.1):.3f}"
    for kind in ("teacher, ancestral, 4 NFE", "student, ancestral, 8 NFE"):
        assert f"| {tmp_path}/b: {kind} | {tmp_path}/a | {ratio} [{ratio}, {ratio}] | 0.2" in table  # 2 of 8 swaps
    for kind in (
        "teacher, ancestral, 4 NFE",
        "teacher, ancestral, 8 NFE",
        "student, ancestral, 4 NFE",
        "student, ancestral, 8 NFE",
    ):
        assert f"| {tmp_path}/b: {kind} | {tmp_path}/a | {ratio} | {ratio} | 3.60 to 4.00 |" in table
    assert table.count("| 3.60 to 4.00 |") == 4  # no other pairs
    assert f"Not in {tmp_path}/a: {tmp_path}/b: teacher, ancestral, 4 NFE, temperature 0.7; " in table
    assert (tmp_path / "c" / "frontier.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_comparison_is_written_to_files_before_it_is_printed(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, sample_set([30.0, 31.0]))

    def print_to_closed_pipe(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", print_to_closed_pipe)
    with pytest.raises(BrokenPipeError):
        run_compare([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    assert {"compare.md", "frontier.png"} == {file.name for file in (tmp_path / "c").iterdir()}


def test_labels_name_the_judge_where_there_are_several(tmp_path, capsys):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, *(sample_set([30.0, 31.0], judge=judge) for judge in ("one", "two")))
    run_compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert capsys.readouterr().out.count("student, ancestral, 8 NFE, judge two |") == 1


@pytest.mark.parametrize("damage", ["metrics", "samples", "line", "list", "repeated"])
def test_a_folder_that_is_not_an_evaluation_is_refused(damage, tmp_path):
    folder = tmp_path / "a"
    write_evaluation(folder, *[sample_set([30.0, 31.0])] * (2 if damage == "repeated" else 1))
    match damage:
        case "metrics" | "samples":
            next(folder.glob(f"{damage}.*")).unlink()
        case "line":
            (folder / "samples.jsonl").write_text("{")
        case "list":
            (folder / "metrics.json").write_text(json.dumps([[1]]))
    with pytest.raises(UsageError, match="was not written by didi evaluate") as caught:
        read_sets(folder)
    message = (
        f"({folder}/{damage}" if damage in ("metrics", "samples") else "(its metrics.json or samples.jsonl is damaged, "
    )
    assert message in str(caught.value)
    assert "FileNotFoundError" not in str(caught.value)


def test_fewer_than_two_folders_and_sets_of_different_settings_are_refused(tmp_path):
    write_evaluation(tmp_path / "a", sample_set([30.0, 31.0]))
    write_evaluation(tmp_path / "b", sample_set([30.0, 31.0], seed=1))
    write_evaluation(tmp_path / "c", sample_set([30.0, 31.0], settings="num_candidates 8"))
    differences = {"b": "seed is 1 and 0", "c": "settings is 'num_candidates 8' and ''"}
    for folders in ([], ["a"]):
        with pytest.raises(UsageError, match="takes two folders or more"):
            run_compare([str(tmp_path / name) for name in folders])
    for other in ("b", "c"):
        nearest = rf"of the two rows with the fewest differences, {differences[other]}"
        message = rf"{other} has no set like one of .*a \({nearest}\): measure both"
        with pytest.raises(UsageError, match=message):
            run_compare([str(tmp_path / "a"), str(tmp_path / other)])


def test_the_refusal_names_the_differences_of_the_most_similar_sets(tmp_path):
    write_evaluation(tmp_path / "a", sample_set([30.0, 31.0], "teacher", 4), sample_set([30.0, 31.0], "student", 8))
    write_evaluation(tmp_path / "b", sample_set([30.0], "student", 16), sample_set([30.0, 31.0], "student", 4))
    with pytest.raises(
        UsageError,
        match=r"of the two rows with the fewest differences, (role is 'student' and 'teacher'|nfe is 4 and 8)\)",
    ):
        run_compare([str(tmp_path / "a"), str(tmp_path / "b")])
    write_evaluation(tmp_path / "data", sample_set([30.0, 31.0], "data", nfe=0))
    with pytest.raises(UsageError, match=r"has no set like one of \S+: measure both"):
        run_compare([str(tmp_path / "a"), str(tmp_path / "data")])


def baseline(nfe=1024, temperatures=(0.8, 0.9, 1.0), level=0.0, **fields):
    """Sets of an autoregressive network at each temperature."""
    base = torch.tensor([30.0, 31.0, 32.0]) + level
    return [sample_set(base, "autoregressive", nfe, temperature, **fields) for temperature in temperatures]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_autoregressive_baseline_of_a_second_bundle_is_compared_at_equal_entropy(tmp_path, capsys, is_first):
    write_evaluation(tmp_path / "a", *(baseline() if is_first else sweep(1.0, [0.8, 0.9, 1.0])))
    write_evaluation(tmp_path / "b", *(sweep(1.0, [0.8, 0.9, 1.0]) if is_first else baseline()))
    run_compare([str(tmp_path / "a"), str(tmp_path / "b")])
    lines = capsys.readouterr().out.splitlines()
    compared = "student, ancestral, 8 NFE" if is_first else "autoregressive, ancestral, 1024 NFE"
    ratio = f"{math.exp(0.1 if is_first else -0.1):.3f}"
    assert f"| {tmp_path}/b: {compared} | {tmp_path}/a | {ratio} | {ratio} | 3.60 to 4.00 |" in lines
    assert sum("| 3.60 to 4.00 |" in line for line in lines) == 4  # two roles at two numbers of moves
    assert any(line.startswith(f"Not in {tmp_path}/a: {tmp_path}/b: ") for line in lines)
    assert not any(" p |" in line for line in lines)  # no pair shares its noise


def test_baselines_of_two_bundles_are_compared_with_each_other_too(tmp_path, capsys):
    write_evaluation(tmp_path / "a", *sweep(0.0, [0.8, 0.9, 1.0]), *baseline(level=1.0))
    write_evaluation(tmp_path / "b", *baseline())
    run_compare([str(tmp_path / "a"), str(tmp_path / "b")])
    out, ratio = capsys.readouterr().out, f"{math.exp(-0.1):.3f}"
    assert out.startswith("| | against | perplexity ratio")
    assert f"| {tmp_path}/b: autoregressive, ancestral, 1024 NFE | {tmp_path}/a | {ratio} | {ratio} |" in out
    assert out.count("| 3.60 to 4.00 |") == 5


def test_a_baseline_without_a_sweep_is_refused(tmp_path):
    write_evaluation(tmp_path / "a", sample_set([30.0, 31.0]))
    write_evaluation(tmp_path / "b", *baseline(temperatures=[1.0]))
    with pytest.raises(UsageError, match="at equal entropy, which takes a sweep of each: give both evaluations"):
        run_compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_baselines_of_different_seeds_are_refused(tmp_path):
    for seed, name in enumerate("ab"):
        write_evaluation(tmp_path / name, *baseline(seed=seed))
    with pytest.raises(UsageError, match="has no set like one of"):
        run_compare([str(tmp_path / "a"), str(tmp_path / "b")])
