"""Pre-training that starts from the network of a bundle, such as AntiBERTy's on heavy chains."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch

from didi.apps.train import pretrain_run
from didi.data.source import MarkovSource
from didi.errors import DidiError, UsageError
from didi.methods.base import Inputs
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import NetworkConfig
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bert import Bert, BertConfig
from didi.models.bundle import Bundle, load, save
from didi.models.dit import DiT, DiTConfig
from didi.models.nelbo import nats_per_token
from didi.models.proteins import MASK_ID
from didi.models.untrusted import read_yaml
from didi.training.loop import RunFolder, run
from didi.training.trainer import make_trainer

from .padded_case import CPU, LENGTH, PRETRAIN, protein_source

SHAPE = BertConfig(hidden_size=16, num_blocks=2, num_heads=2, length=LENGTH + 4, inner_size=40)


@pytest.fixture
def source():
    return protein_source()


@pytest.fixture
def started(randomise, source, tmp_path):
    """A bundle, and settings of a run that starts from it with another dropout."""
    bundle = Bundle(teacher=randomise(Bert(SHAPE)), tokenizer=source.tokenizer, provenance={"layout": "antiberty"})
    save(bundle, tmp_path / "start")
    return bundle, replace(PRETRAIN, start=str(tmp_path / "start"), network=NetworkConfig(dropout=0.25))


def test_a_run_begins_with_the_network_of_its_start_and_trains_all_of_it(started, source):
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


@pytest.mark.slow
def test_the_bundle_names_its_start_which_is_not_read_after_the_run(started, source, tmp_path, monkeypatch):
    _, config = started
    folder = RunFolder(tmp_path / "run")

    def run_and_remove(*args, **options):
        shutil.rmtree(config.start)
        return run(*args, **options)

    monkeypatch.setattr("didi.apps.train.run", run_and_remove)
    pretrain_run(config, folder, resume=False, device=CPU, source=source)
    bundle = load(folder.bundle)
    assert bundle.provenance["start"]["layout"] == "antiberty"
    assert bundle.teacher.config == replace(SHAPE, dropout=0.25)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(started, source, assert_resumes_exactly):
    _, config = started
    assert_resumes_exactly(lambda folder: make_trainer(config, Inputs(source, CPU)), config.loop, stop_in=1)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_settings_and_the_provenance_of_its_start(started, source, tmp_path):
    bundle, config = started
    folder = RunFolder(tmp_path / "run")
    pretrain_run(config, folder, resume=False, device=CPU, source=source)
    with pytest.raises(UsageError, match=r"a resumed run keeps its settings; .* start was"):
        pretrain_run(replace(config, start=""), folder, resume=True, device=CPU, source=source)
    save(replace(bundle, provenance={"layout": "other"}), config.start)  # the same weights
    pretrain_run(config, folder, resume=True, device=CPU, source=source)
    assert load(folder.bundle).provenance["start"]["layout"] == "antiberty"


@pytest.mark.slow
def test_a_run_does_not_resume_with_another_start(started, source, randomise, tmp_path):
    bundle, config = started
    folder = RunFolder(tmp_path / "run")
    pretrain_run(config, folder, resume=False, device=CPU, source=source)
    for shape, message in (
        (SHAPE, "^a resumed run needs the start it had; the weights of '.*start' have changed: restore them"),
        (replace(SHAPE, inner_size=24), "^a resumed run needs the start it had; the weights"),
        (replace(SHAPE, hidden_size=32), "^a resumed run keeps its settings; .* network.hidden_size was 16 and is 32"),
    ):
        save(replace(bundle, teacher=randomise(Bert(shape), 7)), config.start)
        with pytest.raises(UsageError, match=message):
            pretrain_run(config, folder, resume=True, device=CPU, source=source)


@pytest.mark.slow
def test_the_settings_record_the_network_of_the_start(started, source, tmp_path):
    _, config = started
    expected = NetworkConfig(kind="bert", hidden_size=16, num_blocks=2, num_heads=2, dropout=0.25)
    folder = RunFolder(tmp_path / "run")
    pretrain_run(config, folder, resume=False, device=CPU, source=source)
    assert read_yaml(folder.settings)["network"] == asdict(expected)
    assert load(folder.bundle).provenance["settings"]["network"] == asdict(expected)
    assert config.for_dry_run() == replace(config, start="", network=expected)
    assert replace(config, start="./none").for_dry_run() == replace(config, start="")
    shape = DiTConfig(vocab_size=33, mask_id=32, length=16, hidden_size=16, num_blocks=1, num_heads=2, conv_radius=1)
    save(Bundle(teacher=DiT(shape)), config.start)
    network = config.with_network_of_start().network
    assert (network.kind, network.conv_radius, network.cond_dim) == ("dit", 1, shape.cond_dim)


@pytest.mark.parametrize("start", ["./bundles/antiberty", "nobody/antiberty"])
def test_a_missing_start_is_reported_in_one_line_with_the_command_that_makes_it(start, source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def unreachable(repository, *arguments):
        raise DidiError(f"no folder and no reachable Hub repository {repository!r}: offline")

    monkeypatch.setattr("didi.models.bundle.download", unreachable)
    config = replace(PRETRAIN, start=start)
    with pytest.raises(DidiError) as caught:
        pretrain_run(config, RunFolder(tmp_path / "run"), resume=False, device=CPU, source=source)
    message = str(caught.value)
    assert message.startswith("start takes a bundle, which a resumed run needs too")
    assert "`didi convert antiberty antiberty --out bundles/antiberty`" in message
    assert start in message
    assert "\n" not in message
    assert isinstance(caught.value, UsageError) == (start == "./bundles/antiberty")
    assert not (tmp_path / "run").exists()


def test_an_autoregressive_network_starts_from_that_of_a_bundle(source, tmp_path):
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
        (
            replace(config, start="nobody"),
            source,
            "^start takes a bundle, which a resumed run needs too, .* got 'nobody'",
        ),
        (config, MarkovSource(8, 0, "exact"), "start has the tokens of the corpus .*; those of .* are others"),
        (replace(config, process="uniform"), MarkovSource(8, 0, "exact"), "the process of the run, uniform; that of"),
    ):
        with pytest.raises(UsageError, match=message):
            make_trainer(settings, Inputs(rows, CPU))


def test_settings_recorded_before_start_existed_are_upgraded():
    record = {name: getattr(PRETRAIN, name) for name in PretrainConfig.__dataclass_fields__ if name != "start"}
    assert PretrainConfig.upgraded(record)["start"] == ""
    assert "start" not in PretrainConfig.upgraded({"recipe": "antibody"})


def test_networks_recorded_before_other_kinds_existed_are_upgraded():
    network = asdict(NetworkConfig())
    without_kind = {name: value for name, value in network.items() if name != "kind"}
    assert PretrainConfig.upgraded({"network": without_kind})["network"] == without_kind | {"kind": "dit"}
    assert PretrainConfig.upgraded({"network": network | {"kind": "bert"}})["network"]["kind"] == "bert"
    assert PretrainConfig.upgraded({"network": {"dropout": 0.2}})["network"] == {"dropout": 0.2}


def test_a_dry_run_needs_no_start():
    assert replace(PRETRAIN, start="some").for_dry_run() == PRETRAIN
