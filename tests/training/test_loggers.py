"""The loggers TensorBoard and wandb, on fake packages that record the calls."""

import sys
from types import SimpleNamespace

import pytest

from didi.errors import DidiError, UsageError
from didi.process_group import ProcessGroup
from didi.training import loggers
from didi.training.loggers import LOGGERS, open_loggers


class Calls(list):
    """Fake object whose items are its calls, as (name, arguments, options)."""

    def __getattr__(self, name):
        return lambda *args, **options: self.append((name, args, options))


@pytest.fixture
def writer(monkeypatch):
    """List of the calls of the fake SummaryWriter."""
    calls = Calls()

    def make(*args, **options):
        calls.append(("open", args, options))
        return calls

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=make))
    return calls


@pytest.fixture
def wandb(monkeypatch):
    """The fake package ``wandb``, whose attribute ``run`` is the list of calls."""
    module = SimpleNamespace(run=Calls(), Error=type("Error", (Exception,), {}))

    def init(**options):
        module.run.append(("init", (), options))
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def test_tensorboard_gets_scalars_and_purges_steps_that_a_resumed_run_repeats(writer, tmp_path):
    (logger,) = open_loggers(["tensorboard"], tmp_path, 40)
    logger.log(50, {"loss": 1.5, "rate": 0.1})
    logger.close()
    assert writer == [
        ("open", (str(tmp_path / "tensorboard"),), {"purge_step": 41}),  # step 40 is in the checkpoint
        ("add_scalar", ("loss", 1.5, 50), {}),
        ("add_scalar", ("rate", 0.1, 50), {}),
        ("flush", (), {}),
        ("close", (), {}),
    ]


def test_wandb_resumes_the_run_of_the_folder(wandb, tmp_path, monkeypatch):
    folder = tmp_path / "markov-3"
    (logger,) = open_loggers(["wandb"], folder, 0)
    logger.log(10, {"loss": 1.5})
    logger.close()
    identity = (folder / "wandb-run-id").read_text()
    options = {"project": "didi", "name": "markov-3", "id": identity, "resume": "allow", "dir": folder}
    assert wandb.run == [
        ("init", (), options),
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", ({"step": 10, "loss": 1.5},), {}),
        ("finish", (), {}),
    ]
    wandb.run.clear()
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    open_loggers(["wandb"], folder, 10)
    assert wandb.run[0] == ("init", (), options | {"project": "mine"})
    open_loggers(["wandb"], tmp_path / "other", 0)
    assert wandb.run[2][2]["id"] != identity


def test_a_run_that_wandb_refuses_is_reported_in_one_line(wandb, tmp_path):
    def init(**options):
        raise wandb.Error("No API key configured.\nUse wandb login.")

    wandb.init = init
    with pytest.raises(DidiError, match=r"\(No API key configured\.\): log in with 'wandb login'") as caught:
        open_loggers(["wandb"], tmp_path, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(name, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install '\.\[{name}\]'") as caught:
        open_loggers([name], tmp_path, 0)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [["tensorbord"], ["wandb", "wandb"]])
def test_unknown_and_repeated_names_are_refused_with_the_list(names, tmp_path):
    with pytest.raises(UsageError, match=f"different names among tensorboard, wandb; got {', '.join(names)}"):
        open_loggers(names, tmp_path, 0)


def test_loggers_opened_before_one_that_fails_are_closed(writer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="the logger wandb needs"):
        open_loggers(["tensorboard", "wandb"], tmp_path, 0)
    assert writer[-1][0] == "close"
    del writer[:]
    monkeypatch.setitem(LOGGERS, "wandb", LOGGERS["tensorboard"])
    assert len(open_loggers(["tensorboard", "wandb"], tmp_path, 0)) == 2
    assert [call[0] for call in writer] == ["open", "open"]


def test_only_the_main_rank_opens_loggers(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "process_group", lambda: ProcessGroup(rank=1, size=2))
    assert open_loggers(["tensorboard"], tmp_path, 0) == []
    assert not writer
    with pytest.raises(UsageError, match="different names"):
        open_loggers(["other"], tmp_path, 0)
