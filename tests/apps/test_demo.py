"""``didi demo`` on the corpus ``markov``, whose data and judge are part of the package."""

import json
from dataclasses import replace

import pytest
import torch

from didi.apps import demo
from didi.apps.train import distill_run
from didi.errors import Interrupted, UsageError
from didi.evaluation.judges import load_judge
from didi.recipes import DISTILL
from didi.training.loop import RunFolder


@pytest.fixture
def on_markov(monkeypatch, tmp_path):
    """Replace the bundled model by a markov bundle of all roles; returns a list of the assets that were fetched."""
    full = DISTILL["markov"]
    recipe = replace(full, loop=replace(full.loop, steps=1, batch_size=4, validation_sequences=8))
    short = replace(recipe, discriminator=replace(recipe.discriminator, warmup_steps=1, guidance_steps=0))
    bundle = distill_run(short, RunFolder(tmp_path / "bundled"), resume=False, device=torch.device("cpu"))
    fetched = []
    monkeypatch.setattr(demo, "RECIPE", "markov")
    monkeypatch.setitem(demo.DISTILL, "markov", replace(recipe, teacher=str(bundle)))
    monkeypatch.setattr(demo, "fetch", fetched.append)
    monkeypatch.setattr(demo, "load_judge", lambda _: load_judge("markov"))
    return fetched


@pytest.mark.slow
def test_teacher_and_students_are_judged_and_a_second_call_reuses_the_run(on_markov, tmp_path, capsys):
    words = ["--out", str(tmp_path / "demo"), "--steps", "2", "--warmup-steps", "1", "--num-samples", "8"]
    words += ["--batch-size", "4"]
    demo.demo(words)
    out, err = capsys.readouterr()
    assert on_markov == ["news", "smollm2-135m"]
    rows = json.loads((tmp_path / "demo/results/metrics.json").read_text())
    sampled = [(role, nfe) for role in ("teacher", "demo student", "student") for nfe in demo.NFES]
    assert [(row["role"], row["nfe"]) for row in rows] == [("data", 0), *sampled]
    assert rows[0]["gen_ppl"] < min(row["gen_ppl"] for row in rows[1:])
    assert all(row["seed"] == 1 for row in rows)  # the seed of the distillation plus 1
    for name in ("report.md", "perplexity.png", "samples.jsonl"):
        assert (tmp_path / "demo/results" / name).is_file()
    summary = "demo student: 1 + 2 steps of 4 sequences; student: the bundled one, 1 + 1 of 4"  # not the recipe's 100
    assert summary in " ".join(out.split())
    assert "step 3/3" in err

    demo.demo(words)
    assert "step 3/3" not in capsys.readouterr().err
    again = json.loads((tmp_path / "demo/results/metrics.json").read_text())
    assert again[1]["gen_ppl"] == pytest.approx(rows[1]["gen_ppl"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--steps", "--steps is 1 or more; got -1"),
        ("--warmup-steps", "--warmup-steps is 0 or more; got -1"),
        ("--batch-size", "--batch-size is 1 or more; got -1"),
        ("--num-samples", "--num-samples is 1 or more; got -1"),
    ],
)
def test_a_wrong_number_is_refused_before_the_distillation(flag, message, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "fetch", None)  # a call would raise another error
    with pytest.raises(UsageError, match=f"^{message}$"):
        demo.demo([flag, "-1", "--out", str(tmp_path)])


def test_a_stopped_demo_advises_the_same_command_and_not_resume(monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise Interrupted("stopped at step 3 of 6, saved")

    monkeypatch.setattr(demo, "distill_run", stopped)
    monkeypatch.setattr(demo, "fetch", lambda _: None)
    monkeypatch.setattr(demo, "load_judge", lambda _: None)
    with pytest.raises(Interrupted, match=r"^stopped at step 3 of 6, saved; run the same command to continue$"):
        demo.demo(["--out", str(tmp_path / "demo")])
