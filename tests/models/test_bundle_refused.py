"""Incomplete and damaged bundles are refused in one line."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from didi.errors import UsageError
from didi.models.bundle import bundled_names, load

ABSENT = "absent"
PROCESS = {"name": "absorbing", "mask_id": 3, "schedule": "cosine"}


@pytest.fixture
def folder(folder_without_digests):
    """A bundle whose weights a test may change."""
    return folder_without_digests


def edit_manifest(folder, **changes):
    file = folder / "bundle.yaml"
    manifest = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in manifest.items() if value != ABSENT}))


def edit_weights(folder, role, change):
    file = folder / role / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


KEYS = ("blocks.1.attn_qkv.weight", "output_layer.linear.bias")


@pytest.mark.parametrize("name", KEYS)
def test_a_missing_key_is_named(folder, name):
    edit_weights(folder, "student", lambda weights: weights.pop(name))
    with pytest.raises(UsageError, match=f"missing {name}"):
        load(folder)


def test_an_extra_key_is_named(folder):
    edit_weights(folder, "teacher", lambda weights: weights.update(surplus=torch.zeros(1)))
    with pytest.raises(UsageError, match="extra surplus"):
        load(folder)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_another_shape_is_named(folder, name):
    edit_weights(folder, "student", lambda weights: weights.update({name: weights[name][:-1].clone()}))
    with pytest.raises(UsageError, match=f"{name} has shape"):
        load(folder)


def test_a_discriminator_without_its_spectral_vectors_is_refused(folder):
    name = "output_layer.main.0.parametrizations.weight.0._u"
    edit_weights(folder, "discriminator", lambda weights: weights.pop(name))
    with pytest.raises(UsageError, match=f"missing {name}"):
        load(folder)


@pytest.mark.parametrize("file", ["student/config.json", "discriminator/model.safetensors", "bundle.yaml"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(UsageError, match=file.split("/")[-1]):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("student/config.json", "{", "not valid JSON"),
        ("student/config.json", "[]", "holds a JSON mapping of names; got list"),
        ("student/config.json", json.dumps({"vocab_size": 4}), "lacks the setting mask_id"),
        ("student/model.safetensors", "broken", "not a student of this format"),
        ("bundle.yaml", "a: [", "not valid YAML"),
        ("bundle.yaml", "- 1", "holds a YAML mapping of names; got list"),
        ("bundle.yaml", "a: &a [1]\nb: *a", "aliases"),
        ("bundle.yaml", "[" * 5000, "not valid YAML"),
        ("student/config.json", "[" * 500_000, "not valid JSON"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
    ],
)
def test_a_damaged_file_is_refused(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "reads bundle formats 1 and 2; .* has 3"),
        ({"format_version": "2"}, "reads bundle formats 1 and 2; .* has '2'"),
        ({"format_version": True}, "reads bundle formats 1 and 2; .* has True"),
        ({"surplus": 1}, "holds exactly"),
        ({"process": ABSENT}, "holds exactly"),
        ({"process": "absorbing"}, "process in .* is dict; got 'absorbing'"),
        ({"process": PROCESS | {"schedule": "sine"}}, "got 'sine'"),
        ({"process": PROCESS | {"schedule": 1}}, r"settings of the absorbing process are mask_id \(whole numbers\)"),
        (
            {"process": PROCESS | {"name": "gaussian"}},
            "a process is one of absorbing, uniform, sedd-absorb, sedd-uniform; got 'gaussian'",
        ),
        ({"process": PROCESS | {"mask_id": -1}}, "settings of the absorbing process are mask_id .* got mask_id -1"),
        ({"process": PROCESS | {"mask_id": True}}, "settings of the absorbing process are mask_id .* got mask_id True"),
        ({"process": PROCESS | {"extra": 1}}, "settings of the absorbing process are mask_id .* extra 1"),
        ({"process": PROCESS | {"mask_id": 2}}, "share its mask id 2"),
        ({"process": {"name": "uniform", "vocab_size": 4, "schedule": "cosine"}}, "share its mask id None"),
        ({"networks": {}}, "networks in .* have some of the roles"),
        ({"networks": {"judge": "dit"}}, "networks in .* have some of the roles"),
        ({"networks": {"student": "unet"}}, "a network is one of dit, .*bert-discriminator; .* student: 'unet'"),
        ({"networks": {"student": ["dit"]}}, "a network is one of dit, dit-discriminator, gpt2, esm2"),
        ({"networks": {"student": "gpt2"}}, r"student/config\.json has no setting '\w+'; it has .*begin_id"),
        ({"intended_nfe": 0}, "intended_nfe in .* is 1 or more, or null; got 0"),
        ({"intended_nfe": "16"}, "intended_nfe in .* is int"),
        ({"intended_nfe": ABSENT}, "holds exactly"),
        ({"provenance": "me"}, "provenance in .* is dict"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(UsageError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-model", "./no/folder", "/no/folder", "a/b/c"])
def test_an_unknown_name_is_refused(name):
    assert name not in bundled_names()
    with pytest.raises(UsageError, match=f"got '{name}'"):
        load(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "16"}, "hidden_size in .* is a whole number"),
        ({"hidden_size": 2**30}, "too large for"),
        ({"num_blocks": 10**9}, "too large for"),
        ({"num_blocks": -1}, "num_blocks in .* is a whole number"),
        ({"num_heads": True}, "num_heads in .* is a whole number"),
        ({"dropout": float("inf")}, "dropout in .* is a finite number"),
        ({"surprise": 1}, "has no setting 'surprise'"),
    ],
)
def test_settings_are_checked_before_a_network_is_built(folder, changes, message):
    file = folder / "teacher" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError, match=message):
        load(folder)
