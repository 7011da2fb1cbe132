"""The page of ``prose``: cells, cached sets, and the ratio at equal entropy."""

import json
import math

import equal_entropy
import prose
import pytest
import torch

from didi.evaluation.perplexity import Scores

pytestmark = pytest.mark.slow

NUM = 64
NATS = {"data": 3.0, "shuffled words": 6.0, "teacher": 5.0, "student": 4.0}


class Judge:
    """Scores of tokens whose first symbol is ten times their NLL per judge token."""

    def score(self, texts, tokens):
        return Scores(nll=tokens[:, 0] / 10 * 20, num_tokens=torch.full((len(texts),), 20))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study with known scores; the tokens of a set have the NLL of its role, and an entropy that grows with T."""
    drawn, folder = [], tmp_path_factory.mktemp("study")

    def tokens(role, temperature=1.0):
        rows = torch.zeros(NUM, 100, dtype=torch.long)
        rows[:, 0] = round(10 * (NATS[role] + 5 * math.log(temperature)))
        rows[:, 1 : 1 + round(40 * temperature)] = torch.arange(round(40 * temperature)) + 100
        return rows

    def generated(args, role, nfe, temperature):
        drawn.append((role, nfe, temperature))
        return tokens(role, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_entropy, "drawn", generated)
        patch.setattr(equal_entropy, "load_judge", lambda name: Judge())
        patch.setattr(equal_entropy, "decode", lambda bundle, rows: [""] * len(rows))
        patch.setattr(prose, "real_tokens", lambda args, role: tokens(role))
        patch.setattr(prose, "DOCS", folder)
        (folder / "results").mkdir()
        prose.main(["--sets", str(folder / "sets"), "--num-samples", str(NUM)])
        yield json.loads((folder / "results" / "prose.json").read_text("utf-8")), list(drawn), folder


def test_every_cell_is_measured_by_both_judges(measured):
    record, drawn, _ = measured
    assert len(record["rows"]) == 2 * sum(map(len, prose.CELLS.values()))
    for row in record["rows"]:
        nats = NATS[row["role"]] + 5 * math.log(row["temperature"])
        assert row["perplexity"] == pytest.approx(math.exp(round(10 * nats) / 10))
        assert row["perplexity_ci"] == pytest.approx([row["perplexity"]] * 2)
    assert ("teacher", 64, 0.8) in drawn
    assert ("student", 8, 1.0) in drawn
    # The student has the entropy of the teacher at temperature 1, and one nat less.
    for judge in prose.JUDGES:
        for row in record["equal_entropy"][judge]:
            assert row["ratio"] == pytest.approx(math.exp(-1))


def test_sets_are_kept_and_a_part_of_the_cells_writes_no_results(measured, monkeypatch):
    _, _, folder = measured
    monkeypatch.setattr(equal_entropy, "load_judge", None)
    (folder / "results" / "prose.json").unlink()
    prose.main(["--sets", str(folder / "sets"), "--num-samples", str(NUM), "--roles", "teacher"])
    assert not (folder / "results" / "prose.json").exists()
