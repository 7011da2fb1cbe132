"""``didi convert esm2`` and ``dplm``: folders in the layout of the Hub become bundles that generate residues."""

import json

import pytest
import torch
from safetensors.torch import save_file

import didi
from didi.apps.convert import run_convert
from didi.errors import UsageError
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.esm2_layout import to_public_names
from didi.models.proteins import ALPHABET

SETTINGS = {
    "model_type": "esm",
    "num_attention_heads": 2,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}


@pytest.fixture(scope="module")
def network(randomise):
    return randomise(Esm2(Esm2Config(hidden_size=16, num_blocks=2, num_heads=2, length=40, inner_size=64)))


@pytest.fixture
def folder(network, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    torch.save(to_public_names(network.state_dict()), hub / "pytorch_model.bin")
    (hub / "config.json").write_text(json.dumps(SETTINGS))
    (hub / "vocab.txt").write_text("\n".join(ALPHABET))
    return hub


def converted(layout, folder, tmp_path, *flags):
    run_convert([layout, str(folder), "--out", str(tmp_path / "bundle"), *flags])
    return didi.load(tmp_path / "bundle")


@pytest.mark.parametrize(("layout", "schedule"), [("esm2", "log-linear"), ("dplm", "log-linear-500")])
def test_a_hub_folder_becomes_a_teacher_of_proteins(network, folder, tmp_path, layout, schedule):
    bundle = converted(layout, folder, tmp_path)
    assert (bundle.teacher.config, bundle.process.schedule.name) == (network.config, schedule)
    tokens = torch.tensor([[0, 5, 6, 32, 2]])
    with torch.no_grad():
        torch.testing.assert_close(bundle.teacher(tokens), network(tokens))
    assert bundle.provenance["layout"] == layout
    assert bundle.tokenizer.encode("MKT").ids == [20, 15, 11]


def test_safetensors_and_the_flags_role_and_length_are_read(network, folder, tmp_path):
    save_file(to_public_names(network.state_dict()), folder / "model.safetensors")
    bundle = converted("dplm", folder, tmp_path, "--role", "student", "--length", "64")
    assert bundle.teacher is None
    assert bundle.student.length == 64


def test_another_vocabulary_is_refused(folder, tmp_path):
    (folder / "vocab.txt").write_text("\n".join(reversed(ALPHABET)))
    with pytest.raises(UsageError, match="the vocabulary of ESM-2 is <cls> <pad>"):
        converted("dplm", folder, tmp_path)


@pytest.mark.parametrize(
    "flags", [["--weights", "raw"], ["--tied"], ["--tokenizer", "gpt2"], ["--nfe", "8"], ["--nfe", "0"]]
)
def test_flags_that_are_not_read_are_refused(folder, tmp_path, flags):
    with pytest.raises(UsageError, match=f"didi convert dplm does not read {flags[0]}, since "):
        converted("dplm", folder, tmp_path, *flags)


@pytest.mark.parametrize(
    ("flag", "name"), [("--length", "max_position_embeddings"), ("--num-heads", "num_attention_heads")]
)
def test_zero_is_refused_as_any_other_wrong_number(folder, tmp_path, flag, name):
    with pytest.raises(UsageError, match=f"{name} .*got 0"):
        converted("esm2", folder, tmp_path, flag, "0")


def test_a_checkpoint_with_averaged_weights_is_refused(network, tmp_path):
    content = {"state_dict": to_public_names(network.state_dict()), "ema": {"shadow_params": [torch.ones(1)]}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="holds one set of weights"):
        converted("dplm", tmp_path / "last.ckpt", tmp_path)
