"""``benchmarks/composition.py``: a method that starts from the student of another; its commands and its table."""

import json
from dataclasses import replace

import composition
import pytest
from composition import COMPOSITIONS, Chain

from didi.apps.reproduce.methods import method_plan
from didi.apps.reproduce.study import Sampling, Study
from didi.evaluation.row import EvaluationRow

CHAIN = Chain("sdtt", "didi", (4, 8))


class FormulaStudy(Study):
    """A study whose KL is seed + 1 / moves, and seed + 2 / moves for SDTT."""

    def row(self, cell):
        value = (2 if cell.bundle.config.recipe == "exact" and hasattr(cell.bundle.config, "rounds") else 1) / cell.nfe
        row = EvaluationRow(
            cell.role, cell.sampler, cell.nfe, 1.0, 0.0, 8, "float64", "j", 1.0, (1.0, 1.0), 1.0,
            4.0, (4.0, 4.0), 5.0, 7.0, 0.9, 0.01, 1.0, 1.0, 0, "machine",
        )  # fmt: skip
        return replace(row, kl=value + cell.bundle.config.seed)


@pytest.fixture
def plan():
    return method_plan("exact", ["didi", "sdtt"], 2)


def test_the_second_method_starts_from_the_student_of_the_first(plan, tmp_path, monkeypatch):
    commands = []

    def command(*words):
        commands.append(words)
        folder = composition.Path(words[words.index("--out") + 1])
        (folder / ("evaluation" if words[0] == "evaluate" else "bundle")).mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 2, "sequence_passes": 10.0}))
        (folder / "metrics.json").write_text(
            json.dumps([{"sampler": "ancestral", "nfe": nfe, "kl": 0.5} for nfe in (4, 8)])
        )

    monkeypatch.setattr(composition, "command", command)
    study = Study(tmp_path / "study", Sampling(8, "exact"))
    for _ in range(2):
        measurement = composition.chained("exact", CHAIN, plan, study, 1, tmp_path)
    first, second, measured = commands
    config = [composition.settings_of(study, plan.runs(name)[1]) for name in ("sdtt", "didi")]
    assert first[:5] == ("distill", "--config", config[0], "--method", "sdtt")
    assert "--start" not in first
    assert second[:5] == ("distill", "--config", config[1], "--method", "didi")
    assert second[second.index("--start") + 1] == str(tmp_path / "didi-after-sdtt-1" / "sdtt" / "bundle")
    for words in (first, second):
        assert words[words.index("--max-passes") + 1] == "1000000.0"
    assert measured[measured.index("--nfe") + 1 :][:2] == ("4", "8")
    assert (measurement["case"], measurement["seed"], measurement["passes"]) == ("didi after sdtt", 1, 40.0)
    assert measurement["rows"][0]["kl"] == 0.5


def test_incomplete_measurements_are_made_again(tmp_path, monkeypatch):
    rows = [{"sampler": "ancestral", "nfe": nfe, "kl": nfe} for nfe in (2, 4)]
    monkeypatch.setattr(composition, "command", lambda *words: (tmp_path / "metrics.json").write_text(json.dumps(rows)))
    (tmp_path / "metrics.json").write_text(json.dumps(rows[:1]))
    measured = composition.rows_of("bundle", tmp_path, "--judge exact", (2, 4), "ancestral")
    assert [row["kl"] for row in measured] == [2, 4]


def test_a_chain_is_compared_with_both_methods_seed_by_seed(plan, tmp_path):
    study = FormulaStudy(tmp_path, Sampling(8, "exact"))
    measurements = [
        {"seed": seed, "rows": [{"nfe": nfe, "kl": seed + 1 / nfe + 0.5} for nfe in (4, 8)]} for seed in plan.seeds
    ]
    lines = composition.chain_table(CHAIN, measurements, plan, study)
    assert lines[0] == "| KL, nats | 4 moves | 8 moves |"
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[2:-1]}
    assert rows["sdtt"].startswith("| sdtt | 1.0000 [")  # the mean of 0.5 and 1.5
    assert rows["didi after sdtt minus didi"] == (
        "| didi after sdtt minus didi | +0.5000 [+0.500, +0.500] *higher* | +0.5000 [+0.500, +0.500] *higher* |"
    )
    assert "+0.2500 [" in rows["didi after sdtt minus sdtt"]


@pytest.mark.parametrize("scale", COMPOSITIONS)
def test_chains_and_guided_methods_have_recipes_in_the_comparison(scale):
    composition = COMPOSITIONS[scale]
    names = {name for chain in composition.chains for name in (chain.first, chain.second)} | {*composition.guided}
    assert set(method_plan(scale, sorted(names), 1).configs) == names
