import json
import math
from dataclasses import replace

import method_search
import pytest

from didi import recipes
from didi.apps.reproduce.study import Sampling, Study
from didi.errors import DidiError, UsageError
from didi.models.bundle import Bundle, save
from didi.models.untrusted import read_yaml
from didi.recipes import DISTILL


def test_dotted_settings_replace_those_of_the_recipe():
    base = DISTILL["exact"]
    found = method_search.with_settings(base, {"loop.steps": 7, "student_optimizer.learning_rate": "5e-4"})
    optimizer = replace(base.student_optimizer, learning_rate=5e-4)
    assert found == replace(base, loop=replace(base.loop, steps=7), student_optimizer=optimizer)
    assert method_search.with_settings(base, {}) == base


@pytest.mark.parametrize("scale", ["exact", "markov", "tiny"])
def test_the_trials_of_every_world_are_settings_of_its_recipes(scale):
    listed = read_yaml(method_search.Path(method_search.__file__).parent / "method_search" / f"{scale}.yaml")
    trials = method_search.trials_of(scale, listed, [])
    assert trials[0].plan.configs["didi"] == DISTILL[trials[0].plan.world.recipe]
    assert all(trial.plan.seeds == (100,) for trial in trials)
    runs = [trial.plan.runs(trial.method)[0] for trial in trials]
    assert len(set(runs)) == len(runs)  # each tries something of its own
    assert [cell.nfe for cell in method_search.students(trials[0])] == list(method_search.NFES[scale])


def test_a_setting_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"a trial of exact has no setting 'loop\.step'; did you mean 'steps'"):
        method_search.trials_of("exact", {"didi": [{"loop.step": 3}]}, ["didi"])


def test_a_trial_that_fails_is_told_and_ends_no_other(tmp_path, monkeypatch):
    def diverges(*_):
        raise DidiError("loss is not finite")

    (trial,) = method_search.trials_of("exact", {"didi": [{"loop.steps": 3}]}, [])
    monkeypatch.setattr(Study, "complete", diverges)
    study = Study(tmp_path, Sampling(8, "exact"), workers=1)
    assert method_search.attempt(trial, study) == "didi {'loop.steps': 3}: loss is not finite"
    found = method_search.record(trial, study)
    assert all(map(math.isnan, found["quality"].values()))
    (row,) = [line for line in method_search.table([found], (2, 4, 8)) if "loop.steps 3" in line]
    assert row.count("failed") == 3


@pytest.mark.slow
def test_trials_are_made_once(make_dit, tmp_path, monkeypatch, capsys):
    teacher = str(save(Bundle(teacher=make_dit(vocab_size=5, mask_id=4, length=4)), tmp_path / "teacher"))
    base = DISTILL["exact"]
    loop = replace(base.loop, steps=2, batch_size=8, validation_sequences=4)
    short = replace(
        base,
        teacher=teacher,
        data=replace(base.data, length=4),
        loop=loop,
        discriminator=replace(base.discriminator, warmup_steps=1),
    )
    monkeypatch.setitem(recipes.DISTILL, "exact", short)
    trials = tmp_path / "trials.yaml"
    trials.write_text("didi:\n  - {}\n  - {student_optimizer.learning_rate: 3e-3}\n")
    words = ["exact", "--trials", str(trials), "--out", str(tmp_path / "search"), "--workers", "1"]
    method_search.main(words)
    found = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert found["seed"] == 100
    first, second = found["trials"]
    assert second["settings"] == {"student_optimizer.learning_rate": "3e-3"}
    assert first["sequence_passes"] == second["sequence_passes"] > 0
    assert set(first["quality"]) == {"2", "4", "8"}
    assert first["quality"]["4"] > 0
    assert first["quality"] != second["quality"]
    shown = capsys.readouterr().out
    assert f"| {first['quality']['4']:.4f} |" in shown

    def never(*_):
        raise AssertionError("it is there already")

    monkeypatch.setattr("didi.apps.reproduce.study.make", never)
    method_search.main(words)
    assert json.loads((tmp_path / "search" / "trials.json").read_text()) == found
