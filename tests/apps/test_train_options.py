"""Flags and config files of ``didi pretrain`` and ``didi distill``: method, length, trajectory and wrong settings."""

import json
import re
from dataclasses import asdict, replace

import pytest
import yaml

from didi.apps.doctor import doctor
from didi.apps.settings import resolve, settings_named
from didi.apps.train import command_of, distill, pretrain
from didi.errors import DidiError, Interrupted, UsageError
from didi.methods import METHODS, method_of
from didi.methods.didi_settings import DistillConfig, ObjectiveConfig
from didi.methods.elbo import PretrainConfig
from didi.models.bundle import load, save
from didi.models.manifest import read_manifest
from didi.recipes import DISTILL, PRETRAIN
from didi.recipes.presets import PRESETS

from .. import two_moves

SHORT = ["--loop.batch-size", "2", "--loop.validation-sequences", "2", "--data.length", "8"]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (pretrain, ["markov", "--method", "elbo"], "--method is for distill"),
        (pretrain, ["markov-udlm", "--model", "autoregressive"], "model autoregressive needs process absorbing"),
        (pretrain, ["markov", "--loop.loggers", "csv"], "loop.loggers are some of tensorboard, wandb; got csv"),
        (pretrain, ["markov", "--max-minutes", "0"], "--max-minutes is positive; got 0.0"),
        (
            pretrain,
            ["markov", "--max-minutes", "1", "--max-steps", "2"],
            "max-steps and --max-minutes set the length of",
        ),
        (distill, ["markov", "--max-minutes", "1", "--max-passes", "2"], "max-minutes and --max-passes set the length"),
        (distill, ["markov", "--max-passes", "-1"], "--max-passes is positive; got -1"),
        (distill, ["markov", "--method", "elbo"], "a distillation method is one of didi, .*; got 'elbo'"),
        (distill, ["exact", "--teacher", "exact-8"], r"exact-8 has none \(it holds student, discriminator\)"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(command, words, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        command([*words, *SHORT, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["--max-passes", "--max-minutes"])
def test_a_run_with_fewer_steps_than_its_bound_allows_says_so(bound, tmp_path, capsys):
    words = ["markov", *SHORT, "--loop.steps", "2", "--discriminator.warmup-steps", "0", "--out", str(tmp_path / "run")]
    distill([*words, "--discriminator.guidance-steps", "0", bound, "1e6"])
    assert f"all 2 steps fit in {bound} 1e+06; --loop.steps sets more" in capsys.readouterr().err


@pytest.mark.slow
def test_doctor_refuses_a_teacher_that_distill_refuses(monkeypatch):
    monkeypatch.setattr("didi.apps.doctor._estimate", lambda *_: pytest.fail("a dry run began"))
    with pytest.raises(UsageError, match="a distillation takes the teacher of a bundle; exact-8 has none"):
        doctor(["exact", "--teacher", "exact-8"])


@pytest.mark.slow
def test_a_config_file_names_its_method_and_is_read_back(tmp_path, capsys):
    pretrain(["markov", *SHORT, "--max-steps", "1", "--out", str(tmp_path / "first")])
    config = tmp_path / "first/config.yaml"
    assert yaml.safe_load(config.read_text())["method"] == "elbo"
    pretrain(["--config", str(config), "--out", str(tmp_path / "second")])
    assert (tmp_path / "second/bundle/bundle.yaml").is_file()
    with pytest.raises(UsageError, match=r"takes settings of method didi here; those of .* are of elbo"):
        distill(["--config", str(config), "--out", str(tmp_path / "third")])


@pytest.mark.slow
def test_the_recipe_or_the_config_file_decides_the_method_of_a_pre_training(tmp_path, capsys):
    pretrain(["markov-duo", *SHORT, "--max-steps", "2", "--curriculum.gamma-min", "-4", "--curriculum.gamma-max", "1",
              "--out", str(tmp_path / "first")])  # fmt: skip
    config = tmp_path / "first/config.yaml"
    record = yaml.safe_load(config.read_text())
    assert (record["method"], record["recipe"], record["process"]) == ("duo", "markov-duo", "uniform")
    assert record["curriculum"] | {"gamma_min": -4.0, "gamma_max": 1.0, "end": 1} == record["curriculum"]
    rows = [json.loads(line) for line in (tmp_path / "first/metrics.jsonl").read_text().splitlines()]
    assert {"relaxed_nelbo", "nelbo", "validation_nelbo"} <= {name for row in rows for name in row}
    bundle = load(tmp_path / "first/bundle")
    assert (bundle.process.name, bundle.teacher.vocab_size, bundle.teacher.mask_id) == ("uniform", 32, None)
    pretrain(["--config", str(config), "--max-steps", "1", "--out", str(tmp_path / "second")])
    assert yaml.safe_load((tmp_path / "second/config.yaml").read_text())["method"] == "duo"


@pytest.mark.parametrize(
    ("content", "words", "method"),
    [
        ({}, ["markov"], "elbo"),
        ({}, ["markov-duo"], "duo"),
        ({"method": "duo"}, [], "duo"),
        ({"method": "duo", "recipe": "custom"}, [], "duo"),
        ({"recipe": "exact-duo"}, [], "duo"),
        ({"recipe": "exact-udlm"}, [], "elbo"),
        ({"loop": {"steps": 3}}, ["exact-duo"], "duo"),
    ],
)
def test_settings_of_a_pre_training_are_of_the_method_that_is_named(tmp_path, content, words, method):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    words = [*words, "--config", str(tmp_path / "config.yaml")] if content else words
    default = settings_named(words, PRETRAIN, PretrainConfig())
    config = resolve("pretrain", command_of(default, "doc"), PRETRAIN, words)[1]
    assert method_of(config).name == method


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ({"method": "duo"}, ["markov"], "takes settings of method elbo here; those of .* are of duo"),
        ({"method": "elbo", "recipe": "markov-duo"}, [], "takes settings of method duo here; those of .* are of elbo"),
        ({"method": "didi"}, [], "takes settings of method elbo here; those of .* are of didi"),
        ({"recipe": ["markov"]}, [], "recipe in .* is a text"),
    ],
)
def test_a_config_file_of_another_method_is_refused(tmp_path, content, words, message):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=message):
        pretrain([*words, "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_former_name_of_a_recipe_is_read(tmp_path, capsys):
    settings, words = tmp_path / "run/config.yaml", [*SHORT, "--max-steps", "1", "--out", str(tmp_path / "run")]
    pretrain(["markov-uniform", *words])
    assert yaml.safe_load(settings.read_text())["recipe"] == "markov-udlm"
    # A run with the former name is resumed, and its settings are read, under the present name.
    settings.write_text(settings.read_text().replace("markov-udlm", "markov-uniform"))
    pretrain(["markov-uniform", *words, "--resume"])
    settings.write_text(settings.read_text().replace("markov-udlm", "markov-uniform"))
    pretrain(["--config", str(settings), "--max-steps", "1", "--out", str(tmp_path / "again")])
    assert yaml.safe_load((tmp_path / "again/config.yaml").read_text())["recipe"] == "markov-udlm"


def test_a_score_network_of_uniform_states_reads_its_noise_level(tmp_path):
    words = ["markov-sedd-uniform", "--network.no-is-time-conditioned", "--out", str(tmp_path / "run")]
    with pytest.raises(UsageError, match="reads its noise level, on which scores depend; set network"):
        pretrain(words)


@pytest.mark.slow
def test_a_resumed_run_with_max_minutes_keeps_its_number_of_steps(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    monkeypatch.setattr("didi.apps.train.fitted_to_minutes", lambda config, inputs, minutes: config.limited(2))
    pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out])
    monkeypatch.setattr("didi.apps.train.fitted_to_minutes", lambda *_: pytest.fail("the speed is measured again"))
    pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out, "--resume"])
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["loop"]["steps"] == 2
    with pytest.raises(UsageError, match="holds a run: add --resume"):
        pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out])
    for content in ("foo: 1", "loop: 3", "loop: [1]", "loop:", "loop: {steps: true}"):
        (tmp_path / "run/config.yaml").write_text(f"{content}\n")
        with pytest.raises(UsageError, match=r"has no loop\.steps"):
            pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out, "--resume"])
    (tmp_path / "run/config.yaml").write_text("loop: {steps: 0}\n")
    with pytest.raises(UsageError, match=r"--max-minutes sets loop\.steps, which stays 0 in the run in .*: leave"):
        pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out, "--resume"])


@pytest.mark.slow
def test_a_bundle_with_another_number_of_symbols_than_its_process_is_refused(tmp_path, capsys):
    pretrain(["markov-udlm", *SHORT, "--max-steps", "1", "--out", str(tmp_path / "run")])
    path = tmp_path / "run/bundle"
    assert load(save(load(path), tmp_path / "again")).process == read_manifest(path).process
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    manifest["process"]["vocab_size"] = 5
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(UsageError, match="share the 5 symbols of its process"):
        load(path)


PATHS = replace(
    DISTILL["owt-169m"],
    recipe="paths",
    objective=replace(DISTILL["owt-169m"].objective, trajectory="path", moves=8),
)
RECIPES = DISTILL | {PATHS.recipe: PATHS}


def resolved(*words):
    return resolve("distill", command_of(DistillConfig(), "doc"), RECIPES, list(words))[1]


def trajectory(*words):
    objective = resolved(*words).objective
    return objective.trajectory, objective.moves


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["owt-169m"], ("two-moves", None)),
        (["paths"], ("path", 8)),
        (["owt-169m", "--objective.trajectory", "path", "--objective.moves", "5"], ("path", 5)),
        (["paths", "--objective.trajectory", "one-step", "--objective.moves", "None"], ("one-step", None)),
        # Flags of versions before the field ``trajectory``.
        (["owt-169m", "--objective.moves", "8"], ("path", 8)),
        (["markov"], ("whole-path", 8)),
        (["tiny-news"], ("whole-path", 8)),
        (["prose"], ("whole-path", 8)),
        (["tiny-news", "--preset", "two-moves"], ("two-moves", None)),
        (["exact", "--objective.moves", "2"], ("whole-path", 2)),
        (["exact", "--objective.score-decomposition"], ("two-moves", None)),
        (["exact", "--objective.moves", "8"], ("whole-path", 8)),
        (["exact", "--objective.trajectory", "whole-path"], ("whole-path", 4)),
        (["owt-169m", "--objective.moves=8"], ("path", 8)),
        (["paths", "--objective.moves", "16"], ("path", 16)),
        (["paths", "--objective.moves", "2"], ("two-moves", None)),
        (["owt-169m", "--objective.no-score-decomposition"], ("one-step", None)),
        (["owt-169m", "--objective.no-score_decomposition", "--objective.moves", "2"], ("one-step", None)),
        (["paths", "--objective.score-decomposition"], ("path", 8)),
        (["paths", "--objective.score-decomposition", "--objective.moves", "2"], ("two-moves", None)),
        (["paths", "--objective.trajectory", "two-moves"], ("two-moves", None)),
    ],
)
def test_the_trajectory_is_named_or_follows_from_older_flags(words, expected):
    assert trajectory(*words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--objective.no-score-decomposition", "--objective.moves", "8"],
            "moves is for trajectory path or whole-path; got 8 with one",
        ),
        (["--objective.trajectory", "path"], "3 or more; got None"),
        (["--objective.moves", "1"], "3 or more; got 1"),
        (["--objective.trajectory", "two-moves", "--objective.moves", "8"], "got 8 with two-moves"),
        (["--objective.moves", "many"], "objective.moves"),
        (["--objective.trajectory", "one-move"], "one-move"),
        (["--objective.trajectory", "path", "--objective.score-decomposition"], "replaces objective.score"),
    ],
)
def test_contradictory_trajectories_are_refused_in_one_line(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        resolved("owt-169m", *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"score_decomposition": True, "moves": 2}, ("two-moves", None)),
        ({"score_decomposition": True, "moves": 8}, ("path", 8)),
        ({"score_decomposition": False, "moves": 2}, ("one-step", None)),
        ({"score_decomposition": False}, ("one-step", None)),
        ({"score_decomposition": True}, ("path", 8)),  # of the recipe, whose moves stay
        ({"moves": 2}, ("two-moves", None)),
        ({"trajectory": "two-moves", "moves": None}, ("two-moves", None)),
        ({"completions": 3}, ("path", 8)),
    ],
)
def test_a_config_file_without_the_trajectory_is_read(tmp_path, old, expected):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"method": "didi", "recipe": "paths", "objective": old}))
    assert trajectory("--config", str(file)) == expected


def test_score_decomposition_turns_a_one_step_trajectory_into_two_moves(tmp_path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"recipe": "owt-169m", "objective": {"trajectory": "one-step"}})
    )
    words = ("--config", str(tmp_path / "config.yaml"))
    assert trajectory(*words) == ("one-step", None)
    assert trajectory(*words, "--objective.score-decomposition") == ("two-moves", None)


def test_the_settings_in_a_bundle_of_an_older_version_are_read(tmp_path):
    settings = asdict(two_moves.MARKOV) | {"recipe": "tiny-news"}
    settings["objective"] |= {"score_decomposition": True, "moves": 8}
    for later in ("trajectory", "reward_time"):
        del settings["objective"][later]
    del settings["discriminator"]["fresh_rollouts"], settings["start"]
    objective = DistillConfig.upgraded(settings)["objective"]
    assert ObjectiveConfig(**objective).trajectory == "path"
    assert objective["moves"] == settings["objective"]["moves"] == 8
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    read = resolved("--config", str(tmp_path / "config.yaml"))
    assert (read.objective, read.discriminator.fresh_rollouts) == (ObjectiveConfig(**objective), False)


@pytest.mark.slow
def test_a_run_of_an_older_version_is_resumed(tmp_path, capsys):
    words = ["markov", *SHORT, "--max-steps", "1", "--discriminator.warmup-steps", "1", "--out", str(tmp_path / "run")]
    words += ["--loop.batch-size", "4", "--preset", "two-moves"]
    distill([*words, "--objective.moves", "4"])
    file = tmp_path / "run/config.yaml"
    settings = yaml.safe_load(file.read_text())
    assert settings["objective"].pop("trajectory") == "path"
    old = settings | {"objective": settings["objective"] | {"score_decomposition": True}}
    file.write_text(yaml.safe_dump(old, sort_keys=False))
    with pytest.raises(UsageError, match=r"objective.moves was 4 and is None; objective.traj"):
        distill([*words, "--resume"])
    distill([*words, "--objective.moves", "4", "--resume"])
    assert yaml.safe_load(file.read_text())["objective"]["trajectory"] == "path"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("loop: {steps: ten}", r"loop.steps in .*config.yaml is a whole number; got 'ten'"),
        ("loop: {stepz: 10}", r"config.yaml has no setting 'loop.stepz'; did you mean 'steps'\?"),
        ("objective: {divergence: sideways}", "objective.divergence in .* is one of forward, backward, jeffreys"),
        ("teacher: [--seed, 3]", r"teacher in .*config.yaml is a text; got \['--seed', 3\]"),
        ("objective: {moves: 8, score_decomposition: false}", "config.yaml: objective.moves is for trajectory path"),
        ("loop: 3", "loop in .*config.yaml is a mapping of settings; got 3"),
    ],
)
def test_a_wrong_setting_in_a_config_file_is_refused_with_its_name(tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        resolved("markov", "--config", str(tmp_path / "config.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DISTILL)
def test_every_recipe_is_read_back_from_its_settings(tmp_path, name):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(DISTILL[name])))
    assert resolved("markov", "--config", str(tmp_path / "config.yaml")) == DISTILL[name]


def test_a_learning_rate_without_a_decimal_point_is_a_number(tmp_path):
    (tmp_path / "config.yaml").write_text("student_optimizer: {learning_rate: 1e-4}")
    assert resolved("markov", "--config", str(tmp_path / "config.yaml")).student_optimizer.learning_rate == 1e-4


def test_a_recipe_in_a_config_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("recipe: [markov]")
    with pytest.raises(UsageError, match=r"recipe in .*config\.yaml is a text; got \['markov'\]"):
        resolved("--config", str(file))


@pytest.mark.parametrize("words", [[], ["markov"]])
def test_a_config_file_of_an_unknown_recipe_is_refused(tmp_path, words):
    file = tmp_path / "config.yaml"
    file.write_text("recipe: markof\nloop: {steps: 3}")
    with pytest.raises(UsageError, match=r"recipe in .*yaml is one of markov, .*got 'markof'; did you mean 'markov'\?"):
        resolved(*words, "--config", str(file))
    file.write_text("recipe: custom\nloop: {steps: 3}")
    assert resolved("--config", str(file)).loop.steps == 3


def test_the_recipe_as_a_flag_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("loop: {steps: 3}")
    with pytest.raises(UsageError, match=r"the recipe comes first: didi distill RECIPE .*; got --recipe markof"):
        resolved("--config", str(tmp_path / "config.yaml"), "--recipe", "markof")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--max-minutes", "1"]])
def test_resume_without_a_run_is_refused_before_anything_is_read(tmp_path, monkeypatch, more):
    monkeypatch.setattr("didi.apps.train.open_source", lambda *_, **__: pytest.fail("data was read"))
    for command in (pretrain, distill):
        with pytest.raises(UsageError, match=r"--resume continues a run; .*run holds none: leave --resume out"):
            command(["markov", "--out", str(tmp_path / "run"), "--resume", *more])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [pretrain, distill])
def test_a_stopped_run_advises_resume(tmp_path, monkeypatch, command):
    def stopped(*_, **__):
        raise Interrupted("stopped at step 3 of 6, saved")

    monkeypatch.setattr(f"didi.apps.train.{command.__name__}_run", stopped)
    with pytest.raises(Interrupted, match=r"^stopped at step 3 of 6, saved; continue with --resume$"):
        command(["markov", "--out", str(tmp_path / "run")])


@pytest.mark.slow
def test_a_distillation_that_diverges_saves_no_bundle(tmp_path):
    words = [*SHORT, "--max-steps", "1", "--discriminator.warmup-steps", "1", "--discriminator.guidance-steps", "0"]
    out = tmp_path / "run"
    with pytest.raises(DidiError, match="validation_nelbo is not finite after step 2") as caught:
        distill(["markov", *words, "--student-optimizer.learning-rate", "1e30", "--out", str(out)])
    assert not isinstance(caught.value, UsageError)
    assert not (out / "bundle").exists()
    assert not (out / "checkpoints").exists()
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["validation_nelbo"] is None


@pytest.mark.parametrize("value", ["'false'", "0", "[1]"])
def test_score_decomposition_other_than_true_or_false_is_refused(value, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"recipe: markov\nobjective: {{score_decomposition: {value}}}")
    with pytest.raises(UsageError, match=r"score_decomposition was true or false"):
        resolved("--config", str(file))


@pytest.mark.parametrize(("command", "left_out"), [(distill, {"elbo", "duo"}), (doctor, set())])
def test_the_help_names_every_method_and_preset(command, left_out, capsys):
    with pytest.raises(SystemExit):
        command(["markov", "--help"])
    text = " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())
    for flag, names in (("--method STR", METHODS.keys() - left_out), ("--preset STR", PRESETS)):
        entry = text.partition(flag)[2].partition("(default")[0]
        assert [name for name in names if name not in entry] == []
