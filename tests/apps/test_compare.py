import json
import math

import pytest
import torch

from didi.apps.compare import run_compare
from didi.errors import UsageError
from didi.evaluation.perplexity import Scores
from didi.evaluation.report import read_sets, write_metrics, write_samples
from didi.evaluation.row import EvaluationRow, SampleSet


def evaluated(folder, nll, *, num_sets=1, seed=0):
    """A folder as didi evaluate leaves it: real data and a student's sets, each two tenths of a nat sharper."""
    sets = []
    for number in range(num_sets + 1):
        total = torch.as_tensor(nll, dtype=torch.float64) - 2 * max(0, number - 1)
        ppl, entropy = float((total.sum() / 10 / len(total)).exp()), 4.0 - 0.2 * number
        row = EvaluationRow(
            "student" if number else "data", "ancestral" if number else "", 8 * bool(number), 8.0, 0.0, len(total),
            "float64", "j", ppl, (ppl, ppl), ppl, entropy, (entropy, entropy), 5.0, 7.0, 0.9, math.nan, 1.0, 1.0, seed,
            "m", temperature=1 - 0.1 * max(0, number - 1),
        )  # fmt: skip
        texts, tokens = [f"{number}\u2028{i}" for i in range(len(total))], torch.full((len(total),), 10)
        sets.append(SampleSet(row, texts, Scores(total, tokens), torch.full((len(total),), entropy).double()))
    folder.mkdir()
    write_metrics([one.row for one in sets], folder)
    write_samples(sets, folder)
    return sets


def test_sets_are_read_as_they_were_written(tmp_path):
    sets = evaluated(tmp_path / "a", [30.0, math.inf, 32.0], num_sets=2)
    for read, written in zip(read_sets(tmp_path / "a"), sets, strict=True):
        assert read.row.record() == written.row.record()
        assert read.texts == written.texts
        assert read.scores.nll.tolist() == written.scores.nll.tolist()
        assert torch.equal(read.scores.num_tokens, written.scores.num_tokens)
        assert torch.equal(read.entropies, written.entropies)


def test_models_are_compared_pair_by_pair_and_at_equal_entropy(tmp_path, capsys):
    evaluated(tmp_path / "a", [30.0, 31.0, 32.0], num_sets=2)
    evaluated(tmp_path / "b", [31.0, 32.0, 33.0], num_sets=2)
    run_compare([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    table = (tmp_path / "c" / "compare.md").read_text()
    ratio = f"{math.exp(0.1):.3f}"
    kind = "student, ancestral, 8 NFE"
    assert f"| {tmp_path}/b: {kind} | {tmp_path}/a | {ratio} [{ratio}, {ratio}] | 0.2" in table  # 2 of 8 swaps
    assert (
        f"| {tmp_path}/b: student, 8 NFE | {tmp_path}/a: student, 8 NFE | {ratio} | {ratio} | 3.60 to 3.80 |" in table
    )
    assert (tmp_path / "c" / "frontier.png").stat().st_size > 10_000
    assert capsys.readouterr().out.startswith("| | against |")


@pytest.mark.parametrize("damage", ["metrics", "samples", "line", "list"])
def test_a_folder_that_is_not_an_evaluation_is_refused(damage, tmp_path):
    evaluated(tmp_path / "a", [30.0, 31.0])
    folder = tmp_path / "a"
    match damage:
        case "metrics" | "samples":
            next(folder.glob(f"{damage}.*")).unlink()
        case "line":
            (folder / "samples.jsonl").write_text("{")
        case "list":
            (folder / "metrics.json").write_text(json.dumps([[1]]))
    with pytest.raises(UsageError, match="is not the --out of a finished didi evaluate"):
        read_sets(folder)


def test_what_cannot_be_compared_is_refused(tmp_path):
    evaluated(tmp_path / "a", [30.0, 31.0])
    evaluated(tmp_path / "b", [30.0, 31.0], seed=1)
    for folders in ([], ["a"], ["a", "a"]):
        with pytest.raises(UsageError, match="takes two folders or more"):
            run_compare([str(tmp_path / name) for name in folders])
    with pytest.raises(UsageError, match="measure the models with the same flags"):
        run_compare([str(tmp_path / "a"), str(tmp_path / "b")])
