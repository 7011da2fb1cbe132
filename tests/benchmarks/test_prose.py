"""The page of ``prose``: cells, cached sets, the ratio at equal entropy, and joint divergences."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import equal_entropy
import prose
import pytest
import torch

import didi
from didi.diffusion.absorbing import Absorbing
from didi.evaluation.perplexity import Scores
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, save

NUM = 64
NATS = {"data": 3.0, "shuffled words": 6.0, "teacher": 5.0, "student": 4.0}


def nats(role, nfe, temperature):
    """Known NLL per judge token."""
    return NATS[role] - nfe / 80 + 5 * math.log(temperature)


class Judge:
    """Scores of tokens whose first symbol is ten times their NLL per judge token."""

    def score(self, texts, tokens):
        return Scores(nll=tokens[:, 0] / 10 * 20, num_tokens=torch.full((len(texts),), 20))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study with known scores; the tokens of a set have the NLL of its role, and an entropy that grows with T."""
    drawn, folder = [], tmp_path_factory.mktemp("study")

    def tokens(role, nfe=0, temperature=1.0):
        rows = torch.zeros(NUM, 100, dtype=torch.long)
        rows[:, 0] = round(10 * nats(role, nfe, temperature))
        rows[:, 1 : 1 + round(40 * temperature)] = torch.arange(round(40 * temperature)) + 100
        return rows

    def generated(args, role, nfe, temperature):
        drawn.append((role, nfe, temperature))
        return tokens(role, nfe, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_entropy, "drawn", generated)
        patch.setattr(equal_entropy, "load_judge", lambda name: Judge())
        patch.setattr(equal_entropy, "decode", lambda bundle, rows: [""] * len(rows))
        patch.setattr(prose, "real_tokens", lambda args, role: tokens(role))
        patch.setattr(prose, "DOCS", folder)
        (folder / "results").mkdir()
        prose.main(["judges", "--sets", str(folder / "sets"), "--num-samples", str(NUM)])
    return json.loads((folder / "results" / "prose.json").read_text("utf-8")), list(drawn), folder


@pytest.mark.slow
def test_every_cell_is_measured_by_both_judges(measured):
    record, drawn, _ = measured
    assert len(record["rows"]) == 2 * sum(map(len, prose.CELLS.values()))
    for row in record["rows"]:
        expected = round(10 * nats(row["role"], row["nfe"], row["temperature"])) / 10
        assert row["perplexity"] == pytest.approx(math.exp(expected))
        assert row["perplexity_ci"] == pytest.approx([row["perplexity"]] * 2)
    assert ("teacher", 64, 0.8) in drawn
    assert ("student", 8, 1.0) in drawn
    # At temperature 1 all sets have one entropy, so that the ratio is that of the perplexities.
    for judge in prose.JUDGES:
        log_ratios = {(row["nfe"], row["against"]): math.log(row["ratio"]) for row in record["equal_entropy"][judge]}
        assert log_ratios == pytest.approx(
            {
                (8, "teacher at 8"): -1,
                (16, "teacher at 8"): -1.1,
                (8, "teacher at 64"): -0.3,
                (16, "teacher at 64"): -0.4,
            },
            abs=1e-6,
        )


@pytest.mark.slow
def test_stored_sets_are_reused_and_a_part_of_the_cells_writes_no_results(measured, monkeypatch):
    _, _, folder = measured
    monkeypatch.setattr(equal_entropy, "load_judge", None)
    (folder / "results" / "prose.json").unlink()
    prose.main(["judges", "--sets", str(folder / "sets"), "--num-samples", str(NUM), "--roles", "teacher"])
    assert not (folder / "results" / "prose.json").exists()


@pytest.mark.slow
def test_sets_of_another_model_are_refused(measured):
    folder = measured[2]
    with pytest.raises(SystemExit, match=r"one model, number format and seed; .* name another"):
        prose.main(["judges", "--sets", str(folder / "sets"), "--model", "tiny-news"])


@pytest.mark.slow
def test_the_shuffled_rows_have_the_words_of_the_held_out_rows(monkeypatch):
    tokenizer = didi.load("prose").tokenizer
    texts = [f"The council met on day {number} and the minister spoke of {number} new roads." for number in range(9)]
    rows = torch.tensor([tokenizer.encode(text).ids[:12] for text in texts])
    monkeypatch.setattr(prose, "open_source", lambda corpus, length, tokenizer: SimpleNamespace(test=rows))
    args = SimpleNamespace(model="prose", num_samples=6)
    data, shuffled = (prose.real_tokens(args, role) for role in ("data", "shuffled words"))
    assert data.shape == shuffled.shape == (6, 12)
    assert torch.equal(data.sort(1).values, shuffled.sort(1).values)
    assert not torch.equal(data, shuffled)


@pytest.mark.slow
def test_joint_divergences_are_measured_from_stored_sets(tmp_path, monkeypatch):
    network = AutoregressiveLM(
        AutoregressiveConfig(vocab_size=5, mask_id=4, length=6, hidden_size=8, num_blocks=1, num_heads=2)
    ).eval()
    save(Bundle(autoregressive=network, process=Absorbing(4)), tmp_path / "reference")
    draws = []

    def drawn(args, role, nfe, temperature):
        draws.append((role, nfe))
        return torch.randint(4, (32, 6), generator=torch.Generator().manual_seed(nfe)) // (
            4 if role == "student" else 1
        )

    monkeypatch.setattr(prose, "drawn", drawn)
    monkeypatch.setattr(prose, "real_tokens", lambda args, role: drawn(args, role, 0, 1.0))
    monkeypatch.setattr(prose, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "prose.json").write_text('{"rows": ["kept"]}')
    words = [
        "joint",
        "--sets",
        str(tmp_path / "sets"),
        "--reference",
        str(tmp_path / "reference"),
        "--num-samples",
        "32",
    ]
    prose.main(words)
    record = json.loads((tmp_path / "results" / "prose.json").read_text("utf-8"))
    assert record["rows"] == ["kept"]
    assert [(row["role"], row["nfe"]) for row in record["joint"]["rows"]] == draws == prose.JOINT_CELLS
    kl = {(row["role"], row["nfe"]): row["kl"] for row in record["joint"]["rows"]}
    assert kl["student", 8] > 0.03 > 10 * kl["data", 0]  # all tokens of the student are equal
    prose.main(words)
    assert draws == prose.JOINT_CELLS  # the sets are not drawn again


def test_the_tables_of_the_page_are_those_of_the_results():
    results = Path(__file__).parents[2] / "docs" / "results"
    lines = prose.page(json.loads((results / "prose.json").read_text("utf-8")))
    assert "\n".join(["prose.py page: begin -->", *lines, "<!-- end -->"]) in (results / "prose.md").read_text("utf-8")
