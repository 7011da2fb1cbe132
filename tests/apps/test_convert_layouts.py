"""``didi convert``: prefixes of keys, training checkpoints of the paper, shards, precisions and numbers of moves."""

import json
import math
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import didi
from didi.apps.convert import export, run_convert
from didi.errors import UsageError
from didi.models.bundle import DEFAULT_NFE
from didi.models.discriminator import TRUNK, Discriminator
from didi.models.dit import DiT, DiTConfig

VOCAB, LENGTH = 31, 16
TOKENS = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def network(seed=0):
    """A small DiT with random weights."""
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "mask_id": VOCAB - 1, "length": LENGTH, "hidden_size": 24, "num_blocks": 2}
    original = DiT(DiTConfig(**shape, num_heads=3, cond_dim=8)).eval()
    for parameter in original.parameters():  # adaLN and the head start at zero, and would hide a swap
        nn.init.normal_(parameter, std=0.1)
    return original


def prefixed(prefix, original):
    return {prefix + name: value.clone() for name, value in original.state_dict().items()}


def convert(layout, source, tmp_path, *flags, out="bundle"):
    run_convert([layout, str(source), "--out", str(tmp_path / out), *flags])
    return didi.load(tmp_path / out)


@torch.no_grad()
def same(one, two, **tolerance):
    """Whether two networks have equal logits, up to rounding."""
    return torch.allclose(one(TOKENS), two(TOKENS), **{"rtol": 0, "atol": 1e-6} | tolerance)


@pytest.mark.parametrize("prefix", ["backbone.backbone.", "module.backbone._orig_mod.backbone.", "_orig_mod.module."])
def test_keys_with_prefixes_are_converted(tmp_path, prefix):
    original = network()
    torch.save(OrderedDict(prefixed(prefix, original)), tmp_path / "last.ckpt")
    assert same(convert("sdtt", tmp_path / "last.ckpt", tmp_path).student, original)


def discriminator_in_the_layout_of_the_paper(original):
    """Weights in the layout of the paper: trunk keys without prefix, and a last layer whose output is high for real."""
    weights = {name.removeprefix(TRUNK): value.clone() for name, value in original.state_dict().items()}
    for name in ("bias", "parametrizations.weight.original", "parametrizations.weight.0._u"):
        weights[f"output_layer.main.2.{name}"].neg_()
    return {
        name.replace("parametrizations.weight.original", "weight_orig").replace(
            "parametrizations.weight.0._", "weight_"
        ): v
        for name, v in weights.items()
    }


@pytest.fixture
def training_checkpoint(tmp_path):
    """The Lightning checkpoint of the paper's code: file, raw student, averaged student, discriminator."""
    raw, average = network(0), network(1)
    discriminator = Discriminator.from_denoiser(network(2)).eval()
    head = discriminator_in_the_layout_of_the_paper(discriminator)
    state_dict = (
        {"reward_baseline": torch.zeros(())}
        | prefixed("backbone.", raw)
        | {f"discriminator.{name}": value for name, value in head.items()}
        | prefixed("student_ema.", average)
    )
    content = {"state_dict": OrderedDict(state_dict), "ema": {"shadow_params": list(network(3).parameters())}}
    torch.save(content, tmp_path / "didi-instruct.ckpt")
    return tmp_path / "didi-instruct.ckpt", raw, average, discriminator


@pytest.mark.parametrize("weights", ["ema", "raw", None])
def test_a_training_checkpoint_of_the_paper_is_converted(tmp_path, training_checkpoint, weights):
    file, raw, average, discriminator = training_checkpoint
    bundle = convert("didi", file, tmp_path, *(["--weights", weights] if weights else []))
    assert same(bundle.student, raw if weights == "raw" else average)
    assert bundle.provenance["weights"] == (weights or "ema")
    with torch.no_grad():
        logits, expected = (network(TOKENS, torch.full((2,), 0.5)) for network in (bundle.discriminator, discriminator))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_a_named_discriminator_replaces_that_of_the_checkpoint(tmp_path, training_checkpoint):
    file, *_ = training_checkpoint
    other = discriminator_in_the_layout_of_the_paper(Discriminator.from_denoiser(network(7)).eval())
    torch.save({f"discriminator.{name}": value for name, value in other.items()}, tmp_path / "other.ckpt")
    bundle = convert("didi", file, tmp_path, "--discriminator", str(tmp_path / "other.ckpt"))
    assert torch.equal(bundle.discriminator.trunk.vocab_embed.embedding, other["vocab_embed.embedding"])


def test_a_layout_without_discriminator_refuses_a_checkpoint_with_one(tmp_path, training_checkpoint):
    with pytest.raises(UsageError, match="converted with its student; with the layout didi, not mdlm"):
        convert("mdlm", training_checkpoint[0], tmp_path)


def sharded(folder, weights, suffix="safetensors", **changes):
    """Two shards and their index, in the format of ``transformers``."""
    folder.mkdir()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    shards = {f"{stem}-0000{number}-of-00002.{suffix}": {} for number in (1, 2)}
    placed = {}
    for index, (name, value) in enumerate(sorted(weights.items())):
        shard = list(shards)[index % 2]
        shards[shard][name], placed[name] = value, shard
    for name, held in shards.items():
        (save_file if suffix == "safetensors" else torch.save)(held, folder / name)
    record = {"metadata": {"total_size": 1}, "weight_map": placed | changes}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_joined_by_their_index(tmp_path, suffix):
    original = network()
    folder = sharded(tmp_path / "hub", prefixed("backbone.", original), suffix)
    assert same(convert("mdlm", folder, tmp_path).teacher, original)
    index = next(folder.glob("*.index.json"))
    assert same(convert("mdlm", index, tmp_path, out="named").teacher, original)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_embed.embedding": "model-00003-of-00003.safetensors"},
            "names 'model-00003-of-00003.safetensors', which",
        ),
        ({"vocab_embed.embedding": "../model.safetensors"}, r"names '\.\./model\.safetensors', which is none"),
        (
            {"vocab_embed.embedding": "model.safetensors.index.json"},
            "names 'model.safetensors.index.json', which is none",
        ),
        ({"vocab_embed.embedding": 3}, "holds weight_map, the file of each key"),
        (
            {"surplus": "model-00001-of-00002.safetensors"},
            "in the shard that .* names, and in no other; surplus is not",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, changes, message):
    save_file({"vocab_embed.embedding": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=message) as caught:
        convert("mdlm", sharded(tmp_path / "hub", prefixed("", network()), **changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_key_in_a_shard_but_not_in_the_index_is_named(tmp_path):
    folder = sharded(tmp_path / "hub", prefixed("", network()))
    file = folder / "model.safetensors.index.json"
    record = json.loads(file.read_text())
    del record["weight_map"]["vocab_embed.embedding"]
    file.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"in no other; vocab_embed\.embedding is not"):
        convert("mdlm", folder, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["model.safetensors", "best.ckpt"])
def test_weights_of_other_precisions_are_converted(tmp_path, dtype, name):
    original = network()
    weights = {key: value.to(dtype) for key, value in prefixed("backbone.", original).items()}
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    teacher = convert("mdlm", tmp_path / name, tmp_path).teacher
    assert {value.dtype for value in teacher.state_dict().values()} == {torch.float32}
    assert same(teacher, original, atol=0.02)
    for key, value in teacher.named_parameters():
        assert torch.equal(value, weights[f"backbone.{key}"].float())


def test_frequencies_in_half_precision_are_replaced_by_the_exact_ones(tmp_path):
    original = network()
    rounded = {key: value.bfloat16() for key, value in original.state_dict().items()}
    assert not torch.equal(rounded["rotary_emb.inv_freq"].float(), original.rotary_emb.inv_freq)
    save_file(rounded, tmp_path / "model.safetensors")
    teacher = convert("mdlm", tmp_path / "model.safetensors", tmp_path).teacher
    assert torch.equal(teacher.rotary_emb.inv_freq, original.rotary_emb.inv_freq)
    others = rounded | {"rotary_emb.inv_freq": rounded["rotary_emb.inv_freq"] * 2}  # another base: kept
    save_file(others, tmp_path / "model.safetensors")
    teacher = convert("mdlm", tmp_path / "model.safetensors", tmp_path, out="other").teacher
    assert torch.equal(teacher.rotary_emb.inv_freq, others["rotary_emb.inv_freq"].float())
    assert math.isclose(teacher.rotary_emb.inv_freq[0], 2)


@pytest.mark.slow
def test_a_converted_student_records_its_intended_number_of_moves(tmp_path):
    source = tmp_path / "hub"
    source.mkdir()
    save_file(prefixed("", network()), source / "model.safetensors")
    bundle = convert("sdtt", source, tmp_path, "--nfe", "3")
    assert "intended_nfe: 3\n" in (tmp_path / "bundle" / "bundle.yaml").read_text()
    assert "Moves: the student is trained for 3, the default" in (tmp_path / "bundle" / "README.md").read_text()
    assert didi.generate(bundle, num_samples=1).nfe == 3
    export(bundle, tmp_path / "exported")  # the exported settings carry it, and --nfe has precedence over them
    assert convert("sdtt", tmp_path / "exported", tmp_path, out="back").intended_nfe == 3
    assert convert("sdtt", tmp_path / "exported", tmp_path, "--nfe", "5", out="other").intended_nfe == 5
    assert convert("mdlm", tmp_path / "exported", tmp_path, out="teacher").intended_nfe is None


@pytest.mark.slow
def test_without_a_recorded_number_of_moves_the_default_is_used(tmp_path):
    save_file(prefixed("", network()), tmp_path / "model.safetensors")
    bundle = convert("didi", tmp_path / "model.safetensors", tmp_path)
    assert "intended_nfe: null\n" in (tmp_path / "bundle" / "bundle.yaml").read_text()
    assert "is not recorded" in (tmp_path / "bundle" / "README.md").read_text()
    assert didi.generate(bundle, num_samples=1).nfe == DEFAULT_NFE


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        (["--nfe", "0"], {}, "nfe is a whole number, 1 or more; got 0"),
        ([], {"intended_nfe": "8"}, "intended_nfe is a whole number, 1 or more; got '8'"),
        (["--nfe", "8", "--role", "teacher"], {}, "this network is a teacher: leave it out"),
    ],
)
def test_a_wrong_number_of_moves_is_refused(tmp_path, flags, config, message):
    save_file(prefixed("", network()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        convert("sdtt", tmp_path / "model.safetensors", tmp_path, *flags)
