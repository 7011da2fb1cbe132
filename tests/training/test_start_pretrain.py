"""Pre-training that starts from the network of a bundle, such as AntiBERTy's on heavy chains."""

from dataclasses import replace

import pytest
import torch

from didi.apps.train import pretrain_run
from didi.data.source import MarkovSource
from didi.errors import UsageError
from didi.methods.base import Inputs
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import NetworkConfig
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bert import Bert, BertConfig
from didi.models.bundle import Bundle, load, save
from didi.models.nelbo import nats_per_token
from didi.models.proteins import MASK_ID
from didi.training.loop import RunFolder
from didi.training.trainer import make_trainer

from .padded_case import CPU, LENGTH, PRETRAIN, protein_source

SHAPE = BertConfig(hidden_size=16, num_blocks=2, num_heads=2, length=LENGTH + 4, inner_size=40)


@pytest.fixture
def source():
    return protein_source()


@pytest.fixture
def started(randomise, source, tmp_path):
    """A bundle and settings that start from it; of ``network`` they have the dropout of the run."""
    bundle = Bundle(teacher=randomise(Bert(SHAPE)), tokenizer=source.tokenizer, provenance={"layout": "antiberty"})
    save(bundle, tmp_path / "start")
    return bundle, replace(PRETRAIN, start=str(tmp_path / "start"), network=NetworkConfig(dropout=0.25))


def test_a_run_has_the_network_of_its_start_and_trains_it(started, source):
    bundle, config = started
    job = make_trainer(config, Inputs(source, CPU))
    network = job.method.trained["network"]
    assert network.config == replace(SHAPE, dropout=0.25)
    assert all(torch.equal(value, bundle.teacher.state_dict()[name]) for name, value in network.state_dict().items())
    before = job.validate()["validation_nelbo"]
    expected = nats_per_token(
        bundle.teacher, bundle.process, source.validation[:6], batch_size=4, canvas_of=source.canvas
    )
    assert before == pytest.approx(expected, rel=1e-6)
    for step in range(config.loop.steps):
        job.step(step)
    assert job.validate()["validation_nelbo"] < before
    weights = bundle.teacher.state_dict()
    changed = [name for name, value in network.state_dict().items() if not value.equal(weights[name])]
    assert changed == list(network.state_dict())


def test_only_residues_are_masked_and_predicted(started, source):
    job = make_trainer(started[1], Inputs(source, CPU))
    batch = job.method.prepare(0, 0)
    is_masked = batch.z == MASK_ID
    assert is_masked.any()
    assert not is_masked[~batch.canvas.is_free].any()
    assert (batch.z == batch.x0)[~batch.canvas.is_free].all()
    logits = job.method.trained["network"](batch.z, None, batch.canvas.attention_mask)
    assert set(logits[batch.canvas.is_free].isfinite().all(0).nonzero().flatten().tolist()) == set(range(4, 24))


def test_the_bundle_names_its_start_and_a_run_resumes(started, source, tmp_path):
    _, config = started
    folder = RunFolder(tmp_path / "run")
    pretrain_run(config, folder, resume=False, device=CPU, source=source)
    bundle = load(folder.bundle)
    assert bundle.provenance["start"]["layout"] == "antiberty"
    assert bundle.teacher.config == replace(SHAPE, dropout=0.25)
    pretrain_run(config, folder, resume=True, device=CPU, source=source)
    with pytest.raises(UsageError, match=r"a resumed run keeps its settings; .* start was"):
        pretrain_run(replace(config, start=""), folder, resume=True, device=CPU, source=source)


def test_an_autoregressive_network_starts_likewise(source, tmp_path):
    new = make_trainer(replace(PRETRAIN, model="autoregressive"), Inputs(source, CPU))
    save(new.bundle(), tmp_path / "start")
    config = replace(PRETRAIN, model="autoregressive", seed=5, start=str(tmp_path / "start"))
    network = make_trainer(config, Inputs(source, CPU)).method.trained["network"]
    assert isinstance(network, AutoregressiveLM)
    weights = new.bundle().autoregressive.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    with pytest.raises(UsageError, match=r"a bundle with the role teacher; .* holds autoregressive: name another"):
        make_trainer(replace(config, model="masked-diffusion"), Inputs(source, CPU))


def test_a_start_that_does_not_fit_is_refused(started, source):
    _, config = started
    longer = replace(config, data=replace(config.data, length=LENGTH + 5))
    for settings, rows, message in (
        (longer, source, f"data.length is at most the context of start, {LENGTH + 4}; got {LENGTH + 5}: lower it"),
        (replace(config, start="nobody"), source, "^start, which a resumed run needs too: .* got 'nobody'"),
        (config, MarkovSource(8, 0, "exact"), "start has the tokens of the corpus .*; those of .* are others"),
        (replace(config, process="uniform"), MarkovSource(8, 0, "exact"), "the process of the run, uniform; that of"),
    ):
        with pytest.raises(UsageError, match=message):
            make_trainer(settings, Inputs(rows, CPU))


def test_records_of_runs_from_before_this_setting_are_complete():
    record = {name: getattr(PRETRAIN, name) for name in PretrainConfig.__dataclass_fields__ if name != "start"}
    assert PretrainConfig.upgraded(record)["start"] == ""
    assert "start" not in PretrainConfig.upgraded({"recipe": "antibody"})
    assert replace(PRETRAIN, start="some").for_dry_run() == PRETRAIN
