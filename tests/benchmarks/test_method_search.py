"""The trials of every recipe are flags that ``didi distill`` takes, and a trial is run once."""

import json

import method_search
import pytest
import yaml

from didi.apps.settings import resolve
from didi.apps.train import command_of
from didi.methods import find_method
from didi.recipes import distillation_recipes

PLANS = {file.stem: yaml.safe_load(file.read_text()) for file in method_search.TRIALS.glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "method"), [(recipe, method) for recipe in PLANS for method in PLANS[recipe]["methods"]]
)
def test_trials_are_different_settings_of_the_recipe(recipe, method):
    recipes = distillation_recipes(method)
    settings = []
    for flags in PLANS[recipe]["methods"][method]["trials"]:
        words = flags.format(**dict.fromkeys(PLANS[recipe].get("pretrained", {}), "bundle")).split()
        command = command_of(find_method(method).settings_type(), "")
        settings.append(resolve("distill", command, recipes, [recipe, "--method", method, *words])[1])
    assert all(config not in settings[:number] for number, config in enumerate(settings))


@pytest.mark.parametrize("recipe", PLANS)
def test_every_method_has_the_same_number_of_trials(recipe):
    assert len({len(of_method["trials"]) for of_method in PLANS[recipe]["methods"].values()}) == 1


def test_a_trial_is_made_and_measured_once(tmp_path, monkeypatch):
    commands = []

    def command(*words):
        commands.append(words)
        folder = method_search.Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if words[0] == "distill":
            (folder / "bundle").mkdir()
            lines = [
                {"step": 2, "sequence_passes": 10.0},
                {"step": 2, "validation": 1.0},
                {"step": 5, "sequence_passes": 4.0},
            ]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        else:
            (folder / "metrics.json").write_text(json.dumps([{"nfe": 4, "kl": 0.5, "mauve": 1.0, "entropy": None}]))

    monkeypatch.setattr(method_search, "command", command)
    plan = PLANS["exact"]
    arguments = "exact", plan, "didi", "--loop.batch-size 8", tmp_path / "didi-0"
    result = method_search.trial(*arguments)
    assert result["rows"] == [{"nfe": 4, "kl": 0.5}]
    assert result["passes"] == 2 * 10 + 3 * 4
    (train, measure) = commands
    assert train[:4] == ("distill", "exact", "--method", "didi")
    assert train[-6:] == ("--seed", "100", "--max-passes", "2000000.0", "--loop.batch-size", "8")
    assert measure[:3] == ("evaluate", "--model", str(tmp_path / "didi-0" / "run" / "bundle"))
    assert method_search.trial(*arguments) == result
    assert len(commands) == 2


def test_networks_of_a_plan_are_trained_once_and_named_in_flags(tmp_path, monkeypatch):
    commands = []

    def command(*words):
        commands.append(words)
        folder = method_search.Path(words[words.index("--out") + 1])
        (folder / ("evaluation" if words[0] == "evaluate" else "bundle")).mkdir(parents=True)
        (folder / "metrics.json").write_text("[]")

    monkeypatch.setattr(method_search, "command", command)
    plan = {**PLANS["exact"], "pretrained": {"exact-ar": 7}, "evaluate": "--joint-reference {exact-ar}"}
    for _ in range(2):
        method_search.pretrain("exact-ar", 7, tmp_path)
    method_search.trial("exact", plan, "didi", "--teacher {exact-ar}", tmp_path / "didi-0")
    (pretrained, trained, measured) = commands
    bundle = str(tmp_path / "exact-ar-7" / "bundle")
    assert pretrained[:4] == ("pretrain", "exact-ar", "--max-steps", "7")
    assert trained[-2:] == ("--teacher", bundle)
    assert measured[-2:] == ("--joint-reference", bundle)


@pytest.mark.slow
def test_a_failed_trial_raises_the_error_of_the_command(tmp_path):
    with pytest.raises(RuntimeError, match="a recipe is one of"):
        method_search.command("distill", "nowhere", "--out", str(tmp_path))


def test_a_trial_is_run_again_where_the_plan_has_changed():
    plan = PLANS["exact"]
    names = {method_search.trial_digest(plan, "didi", ""), method_search.trial_digest(plan, "didi", "--rounds 2")}
    names |= {
        method_search.trial_digest({**plan, name: value}, "didi", "") for name, value in (("seed", 3), ("passes", 5))
    }
    names.add(method_search.trial_digest({**plan, "pretrained": {"exact-ar": 7}}, "didi", ""))
    assert len(names) == 5
    # The trials of the plan are not part of the digest: their flags are.
    methods = {**plan["methods"], "didi": {"trials": ["--rounds 2"]}}
    assert method_search.trial_digest({**plan, "methods": methods}, "didi", "") in names
