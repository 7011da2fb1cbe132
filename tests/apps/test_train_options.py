"""Options of ``didi pretrain`` and ``didi distill`` that decide the method and the length of a run."""

import pytest
import yaml

from didi.apps.train import distill, pretrain
from didi.errors import UsageError
from didi.models.bundle import load, save
from didi.models.manifest import read_manifest

SHORT = ["--loop.batch-size", "2", "--loop.validation-sequences", "2", "--data.length", "8"]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (pretrain, ["markov", "--method", "elbo"], "--method is for distill"),
        (pretrain, ["markov-uniform", "--model", "autoregressive"], "model autoregressive goes with process absorbing"),
        (pretrain, ["markov", "--loop.loggers", "csv"], "loop.loggers are some of tensorboard, wandb; got csv"),
        (pretrain, ["markov", "--max-minutes", "0"], "--max-minutes is positive; got 0.0"),
        (pretrain, ["markov", "--max-minutes", "1", "--max-steps", "2"], "both set the length of the run"),
        (distill, ["markov", "--method", "elbo"], "a distillation method is one of didi; got 'elbo'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(command, words, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        command([*words, *SHORT, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_config_file_names_its_method_and_is_read_back(tmp_path, capsys):
    pretrain(["markov", *SHORT, "--max-steps", "1", "--out", str(tmp_path / "first")])
    config = tmp_path / "first/config.yaml"
    assert yaml.safe_load(config.read_text())["method"] == "elbo"
    pretrain(["--config", str(config), "--out", str(tmp_path / "second")])
    assert (tmp_path / "second/bundle/bundle.yaml").is_file()
    with pytest.raises(UsageError, match=r"takes settings of method didi here; those of .* are of elbo"):
        distill(["--config", str(config), "--out", str(tmp_path / "third")])


def test_a_run_that_fits_a_time_keeps_its_length_when_it_goes_on(tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "run")
    monkeypatch.setattr("didi.apps.train.fitted", lambda config, inputs, minutes: config.limited(2))
    pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out])
    monkeypatch.setattr("didi.apps.train.fitted", lambda *_: pytest.fail("timed again"))
    pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out, "--resume"])
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["loop"]["steps"] == 2
    with pytest.raises(UsageError, match="holds a run: add --resume"):
        pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out])
    (tmp_path / "run/config.yaml").write_text("foo: 1\n")
    with pytest.raises(UsageError, match=r"does not say loop\.steps"):
        pretrain(["markov", *SHORT, "--max-minutes", "1", "--out", out, "--resume"])


def test_the_symbols_of_a_bundle_are_those_of_its_process(tmp_path, capsys):
    pretrain(["markov-uniform", *SHORT, "--max-steps", "1", "--out", str(tmp_path / "run")])
    path = tmp_path / "run/bundle"
    assert load(save(load(path), tmp_path / "again")).process == read_manifest(path).process
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    manifest["process"]["vocab_size"] = 5
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(UsageError, match="share the 5 symbols of its process"):
        load(path)
