"""Bundles of format 1 are read; bundles of format 2 are written and read."""

import dataclasses
import json
from importlib.resources import files

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.schedule import Cosine, LogLinear
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.bundle import Bundle, bundled_names, load, save
from didi.models.dit import DiT


def manifest_of(folder):
    return yaml.safe_load((folder / "bundle.yaml").read_text())


def remove_digests(folder):
    manifest = manifest_of(folder)
    del manifest["provenance"]["weights_sha256"]
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))


def as_format_1(folder, **changes):
    """The folder, after its manifest is rewritten in format 1."""
    process = manifest_of(folder)["process"]
    roles = list(manifest_of(folder)["networks"])
    first = {"format_version": 1, "roles": roles, "schedule": process["schedule"], "mask_id": process.get("mask_id")}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(first | {"provenance": {"recipe": "old"}} | changes))
    return folder


@pytest.fixture
def folder(make_dit, make_discriminator, tmp_path):
    teacher = make_dit(seed=1)
    bundle = Bundle(
        student=make_dit(seed=2),
        teacher=teacher,
        discriminator=make_discriminator(teacher),
        process=Absorbing(3, Cosine()),
        intended_nfe=8,
    )
    return save(bundle, tmp_path / "bundle")


@pytest.fixture
def without_mask(tiny_config, randomise, tmp_path):
    network = randomise(DiT(dataclasses.replace(tiny_config(vocab_size=5), mask_id=None)), 3)
    return save(Bundle(teacher=network, process=Uniform(5, Cosine())), tmp_path / "uniform")


@pytest.mark.parametrize("name", ["markov", "tiny-news"])
def test_bundled_models_are_loaded_with_process_and_provenance(name):
    assert name in bundled_names()
    bundle = load(name)
    assert bundle.process == Absorbing(bundle.network().mask_id, LogLinear())
    assert bundle.provenance


@pytest.mark.parametrize("name", ["exact", "exact-8", "tiny-news"])
def test_the_card_of_a_bundled_student_states_its_number_of_moves(name):
    card = (files("didi") / "bundles" / name / "README.md").read_text()
    assert f"Moves: the student is trained for {load(name).intended_nfe}, the default of `didi generate`." in card


def test_a_manifest_of_format_1_is_read(folder):
    now = load(folder)
    old = load(as_format_1(folder))
    assert old.process == now.process == Absorbing(3, Cosine())
    assert old.provenance == {"recipe": "old"}
    assert (old.intended_nfe, now.intended_nfe) == (None, 8)
    assert list(old.networks()) == ["student", "teacher", "discriminator"]
    for role, network in old.networks().items():
        assert type(network) is type(now.networks()[role])
        assert all(map(torch.equal, network.state_dict().values(), now.networks()[role].state_dict().values()))


@pytest.mark.parametrize("is_format_1", [False, True])
def test_a_discriminator_with_the_old_names_of_its_trunk_is_read(folder, is_format_1):
    now = load(folder).discriminator.state_dict()
    file = folder / "discriminator" / "model.safetensors"
    remove_digests(folder)  # older bundles have none
    stored = load_file(file)
    assert stored.keys() == now.keys()
    assert {name.split(".")[0] for name in stored} == {"trunk", "output_layer"}
    save_file({name.removeprefix("trunk."): value for name, value in stored.items()}, file)
    old = load(as_format_1(folder) if is_format_1 else folder).discriminator.state_dict()
    assert list(old) == list(now)
    assert all(torch.equal(old[name], now[name]) for name in now)
    save_file({name.removeprefix("trunk."): value for name, value in stored.items() if "norm1" not in name}, file)
    with pytest.raises(UsageError, match=r"missing trunk\.blocks\.0\.norm1\.weight"):
        load(folder)


def test_a_manifest_of_format_1_without_mask_means_uniform_state_diffusion(without_mask):
    assert load(as_format_1(without_mask, mask_id=None)).process == Uniform(5, Cosine())
    config = without_mask / "teacher" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": "many"}))
    with pytest.raises(UsageError, match=r"settings of the uniform process are vocab_size .* got vocab_size 'many'"):
        load(without_mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "sine"}, "got 'sine'"),
        ({"roles": []}, "roles in .* are some of"),
        ({"roles": ["judge"]}, "roles in .* are some of"),
        ({"roles": ["student", "student"]}, "roles in .* are some of"),
        ({"roles": [["student"]]}, "roles in .* are some of"),
        ({"mask_id": 2}, "share its mask id 2"),
        ({"mask_id": True}, "mask_id in .* is .*; got True"),
        ({"provenance": "me"}, "provenance in .* is dict"),
        ({"process": {}}, "holds exactly format_version, roles, schedule, mask_id, provenance"),
    ],
)
def test_a_wrong_manifest_of_format_1_is_refused_in_one_line(folder, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        load(as_format_1(folder, **changes))
    assert "\n" not in str(caught.value)


def test_saving_writes_format_2(folder, without_mask):
    manifest = manifest_of(folder)
    assert list(manifest["provenance"].pop("weights_sha256")) == ["student", "teacher", "discriminator"]
    assert manifest == {
        "format_version": 2,
        "process": {"name": "absorbing", "mask_id": 3, "schedule": "cosine"},
        "networks": {"student": "dit", "teacher": "dit", "discriminator": "dit-discriminator"},
        "intended_nfe": 8,
        "provenance": {},
    }
    assert manifest_of(without_mask)["process"] == {"name": "uniform", "vocab_size": 5, "schedule": "cosine"}
    assert load(without_mask).process == Uniform(5, Cosine())
    again = save(load(as_format_1(folder)), folder)
    assert manifest_of(again)["format_version"] == 2


def test_the_process_follows_the_network_unless_it_is_given(make_dit, without_mask):
    assert Bundle(teacher=make_dit()).process == Absorbing(3)
    assert Bundle(teacher=load(without_mask).teacher).process == Uniform(5)
    assert Bundle(teacher=make_dit(), process=Absorbing(3, Cosine())).process.schedule == Cosine()


def test_a_network_outside_the_registry_is_not_saved(make_dit, tmp_path):
    class Other(DiT):
        """Not in NETWORKS."""

    with pytest.raises(UsageError, match=r"of the kinds dit, .*bert-discriminator; got Other: add it to NETWORKS"):
        save(Bundle(teacher=Other(make_dit().config)), tmp_path / "other")
    assert not list(tmp_path.iterdir())
