"""An update whose loss or gradient is not finite changes no weight, no average and no later update of its step."""

import copy
from dataclasses import replace

import pytest
import torch

from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.recipes import PRETRAIN
from didi.training import optim, trainer
from didi.training.trainer import make_trainer

from ..two_moves import MARKOV

CPU = torch.device("cpu")


@pytest.fixture(params=["host", "device"])
def decided_on(request, monkeypatch):
    """Whether host or device decides about an update; on a CPU the fused optimizers of CUDA devices run too."""
    if request.param == "device":
        for module in (optim, trainer):
            monkeypatch.setattr(module, "is_on_cuda", lambda network: True)


@pytest.fixture
def distillation(source, teacher, tmp_path, decided_on):
    base = MARKOV
    short = replace(base.discriminator, warmup_steps=0)
    config = replace(
        base,
        data=replace(base.data, length=8),
        loop=replace(base.loop, steps=4, batch_size=4),
        discriminator=short,
    )
    return make_trainer(config, Inputs(source, CPU, tmp_path, teacher))


@pytest.fixture(params=["adamw", "muon"])
def pretraining(source, request, decided_on):
    base = PRETRAIN["markov"]
    config = replace(
        base,
        data=replace(base.data, length=8),
        loop=replace(base.loop, steps=4, batch_size=4),
        optimizer=replace(base.optimizer, method=request.param),
    )
    return make_trainer(config, Inputs(source, CPU))


def changed_by_steps(job):
    """A copy of the training state without learning rates, which every step sets."""
    state = copy.deepcopy(job.state_dict())
    for part in state.values():
        for group in part.get("optimizer", {}).get("param_groups", ()):
            del group["lr"]
    return state


def with_bad_value(loss, by):
    """The loss function with a value that is not finite (``by`` is loss), or a finite value whose gradient is not."""

    def bad_loss(*arguments):
        value, metrics = loss(*arguments)
        return value + (float("nan") if by == "loss" else (value - value.detach()).sqrt()), metrics

    return bad_loss


@pytest.mark.parametrize("by", ["loss", "gradient"])
def test_a_bad_update_of_a_pretraining_changes_nothing(pretraining, assert_same_state, by, monkeypatch):
    pretraining.step(0)
    before = changed_by_steps(pretraining)
    nelbo = pretraining.method._nelbo
    monkeypatch.setattr(pretraining.method, "_nelbo", with_bad_value(nelbo, by))
    metrics = pretraining.step(1)
    assert not torch.isfinite(torch.stack([torch.as_tensor(value) for value in metrics.values()])).all()
    assert_same_state(changed_by_steps(pretraining), before)
    monkeypatch.setattr(pretraining.method, "_nelbo", nelbo)
    pretraining.step(2)
    assert int(pretraining.average.n_averaged) == 2
    assert all(torch.isfinite(value).all() for value in pretraining.method.trained["network"].parameters())


@pytest.mark.parametrize("by", ["loss", "gradient"])
@pytest.mark.parametrize("network", ["discriminator", "student"])
def test_a_bad_update_of_a_distillation_changes_nothing_after_it(
    distillation, assert_same_state, by, network, monkeypatch
):
    distillation.step(0)
    before = changed_by_steps(distillation)
    name = f"_{network}_loss"
    monkeypatch.setattr(distillation.method, name, with_bad_value(getattr(distillation.method, name), by))
    distillation.step(1)
    after = changed_by_steps(distillation)
    for part in ("student", "average"):
        assert_same_state(after[part], before[part])
    first, last = before["discriminator"]["weights"], after["discriminator"]["weights"]
    trained = dict(distillation.method.discriminator.named_parameters())
    is_unchanged = all(torch.equal(last[name], first[name]) for name in trained)
    assert is_unchanged == (network == "discriminator")
    if network == "discriminator":
        assert_same_state(after["discriminator"]["optimizer"], before["discriminator"]["optimizer"])
    assert all(
        parameter.grad is None for part in distillation.method.trained.values() for parameter in part.parameters()
    )


def test_several_updates_of_a_network_do_not_share_accumulated_batches(pretraining, source, monkeypatch):
    config = replace(pretraining.method.settings, loop=replace(pretraining.method.settings.loop, accumulation=2))
    job = make_trainer(config, Inputs(source, CPU))
    (update,) = job.method.updates(0)
    monkeypatch.setattr(job.method, "updates", lambda step: [update, update])
    with pytest.raises(UsageError, match=r"set loop\.accumulation to 1; got 2 and 2 updates"):
        job.step(0)
