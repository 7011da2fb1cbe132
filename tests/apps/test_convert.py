"""Files in each public layout are converted to bundles whose networks compute the same as the original code."""

import json
import math
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import didi
from didi.apps.convert import export, run_convert
from didi.errors import UsageError
from didi.models import inert_pickle
from didi.models.convert import BACKBONE_PREFIX, BUFFERS, HEAD
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT, DiTConfig
from didi.models.nelbo import nats_per_token

VOCAB, LENGTH = 31, 16
TOKENS = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
MDLM_CONFIG = {"model_type": "mdlm", "n_heads": 3, "model_length": LENGTH, "time_conditioning": False}
SEDD_CONFIG = {
    "tokens": VOCAB - 1,
    "graph": {"type": "absorb"},
    "noise": {"type": "loglinear"},
    "model": {"name": "small", "n_heads": 3, "length": LENGTH, "scale_by_sigma": True},
}


def network(seed=0, **settings):
    """A small DiT with random weights."""
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "mask_id": VOCAB - 1, "length": LENGTH, "hidden_size": 24, "num_blocks": 2}
    original = DiT(DiTConfig(**shape, num_heads=3, cond_dim=8, **settings)).eval()
    for parameter in original.parameters():  # adaLN and the head start at zero, and would hide a swap
        nn.init.normal_(parameter, std=0.1)
    return original


def folder(path, weights, config=None, name="model.safetensors"):
    """Write weights, and a config.json if it is given, to a folder; returns its path as text."""
    path.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({key: value.clone() for key, value in weights.items()}, path / name)
    else:
        torch.save(weights, path / name)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return str(path)


def prefixed(original):
    return OrderedDict((BACKBONE_PREFIX + name, value) for name, value in original.state_dict().items())


def parameters_in_order(original):
    return [value.clone() for name, value in original.state_dict().items() if name not in BUFFERS]


def converted(layout, source, tmp_path, *flags):
    run_convert([layout, source, "--out", str(tmp_path / "bundle"), "--overwrite", *flags])
    return didi.load(tmp_path / "bundle")


@torch.no_grad()
def same(one, two, sigma=None):
    """Whether two networks have equal logits, up to rounding, which depends on the alignment of memory."""
    return torch.allclose(one(TOKENS, sigma), two(TOKENS, sigma), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["mdlm", "sdtt", "didi"])
def test_a_hub_folder_in_the_mdlm_layout_is_converted(tmp_path, layout):
    original = network()
    source = folder(tmp_path / "hub", original.state_dict() if layout == "didi" else prefixed(original), MDLM_CONFIG)
    bundle = converted(layout, source, tmp_path)
    result = bundle.network("teacher" if layout == "mdlm" else "student")
    assert same(result, original)
    assert (result.config.num_heads, result.length, result.mask_id) == (3, LENGTH, VOCAB - 1)
    assert bundle.provenance == {"source": source, "layout": layout, "weights": "raw", "block_layout": "bos-eos"}
    assert len(didi.generate(bundle, num_samples=2, nfe=4).tokens) == 2


@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.ckpt", "model.safetensors"])
def test_every_kind_of_file_holds_the_same_network(tmp_path, name):
    original = network()
    bundle = converted("mdlm", folder(tmp_path / "hub", prefixed(original), name=name), tmp_path)
    assert same(bundle.teacher, original)  # the number of heads follows from the rotary frequencies
    assert bundle.teacher.length == 1024


def lightning(original, average, **more):
    """Content of a Lightning checkpoint with the weights of one network and the averaged weights of another."""
    return {
        "state_dict": prefixed(original) | {"noise.sigma_max": torch.ones(1)},
        "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": parameters_in_order(average)},
        "epoch": 1,
        "global_step": 1000,
        **more,
    }


@pytest.mark.parametrize("weights", ["ema", "raw", None])
def test_the_average_of_a_lightning_checkpoint_is_mapped_in_order(tmp_path, weights):
    raw, average = network(0), network(1)
    file = tmp_path / "best.ckpt"
    torch.save(lightning(raw, average), file)
    bundle = converted("mdlm", str(file), tmp_path, *(["--weights", weights] if weights else []))
    assert same(bundle.teacher, raw if weights == "raw" else average)
    assert bundle.provenance["weights"] == (weights or "ema")


@pytest.mark.parametrize("change", ["fewer", "reshaped"])
def test_an_average_that_does_not_fit_is_refused(tmp_path, change):
    content = lightning(network(0), network(1))
    shadow = content["ema"]["shadow_params"]
    content["ema"]["shadow_params"] = shadow[:-1] if change == "fewer" else [shadow[0].T.contiguous(), *shadow[1:]]
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UsageError, match="averaged weights fit the named ones one by one"):
        converted("mdlm", str(tmp_path / "best.ckpt"), tmp_path)


class CodeInPickle:
    """Object that makes the file ``code-has-run`` when it is unpickled."""

    def __reduce__(self):
        return (Path("code-has-run").touch, ())


def test_settings_in_a_lightning_checkpoint_are_skipped(tmp_path):
    file = Path(__file__).parents[1] / "models" / "data" / "lightning-omegaconf-2.3.ckpt"
    bundle = converted("mdlm", str(file), tmp_path)
    expected = torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert_pickle)["state_dict"]
    assert torch.equal(bundle.teacher.vocab_embed.embedding, expected["backbone.vocab_embed.embedding"])
    assert len(didi.generate(bundle, num_samples=2, nfe=4).tokens) == 2


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = network()
    torch.save(lightning(original, original, callbacks=CodeInPickle()), tmp_path / "best.ckpt")
    assert same(converted("mdlm", "best.ckpt", tmp_path).teacher, original)
    assert not Path("code-has-run").exists()


def test_tied_weights_may_be_stored_once(tmp_path):
    original = network()
    with torch.no_grad():
        original.output_layer.linear.weight.copy_(original.vocab_embed.embedding)
    alone = {name: value for name, value in original.state_dict().items() if name != HEAD}
    source = folder(tmp_path / "hub", alone)
    with pytest.raises(UsageError, match=f"missing {HEAD}"):
        converted("mdlm", source, tmp_path)
    assert same(converted("mdlm", source, tmp_path, "--tied").teacher, original)
    (tmp_path / "hub" / "config.json").write_text(json.dumps(MDLM_CONFIG | {"tie_word_embeddings": True}))
    assert same(converted("mdlm", source, tmp_path).teacher, original)
    # A training checkpoint has the tied matrix under both names; its average has it once.
    content = {
        "state_dict": prefixed(original),
        "ema": {"shadow_params": [v for n, v in original.state_dict().items() if n not in (*BUFFERS, HEAD)]},
    }
    torch.save(content, tmp_path / "tied.ckpt")
    assert same(converted("mdlm", str(tmp_path / "tied.ckpt"), tmp_path, "--tied").teacher, original)
    with pytest.raises(UsageError, match="leave tied out"):
        converted("mdlm", folder(tmp_path / "untied", network(3).state_dict()), tmp_path, "--tied")


def test_a_sedd_checkpoint_becomes_a_time_conditioned_denoiser(tmp_path):
    raw, average = network(0, is_time_conditioned=True), network(1, is_time_conditioned=True)
    content = {
        "model": OrderedDict((f"module.{name}", value) for name, value in raw.state_dict().items()),
        "ema": {"decay": 0.9999, "num_updates": 1, "shadow_params": parameters_in_order(average)},
        "step": 3,
    }
    source = folder(tmp_path / "sedd", content, SEDD_CONFIG, name="checkpoint.pth")
    bundle = converted("sedd", source, tmp_path)
    assert bundle.teacher.is_time_conditioned
    assert same(bundle.teacher, average, torch.tensor([0.5, 2.0]))
    assert len(didi.generate(bundle, num_samples=2, nfe=4).tokens) == 2


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_scores_of_sedd_are_those_of_the_original_code(tmp_path, graph):
    original, t = network(0, is_time_conditioned=True), torch.tensor([0.3], dtype=torch.float64)
    source = folder(tmp_path / "hub", prefixed(original), SEDD_CONFIG | {"graph": {"type": graph}})
    bundle = converted("sedd", source, tmp_path)
    process, alpha = bundle.process, float(bundle.process.schedule.alpha(t))
    assert (process.name, process.schedule.name) == (f"sedd-{graph}", "log-linear-eps")
    assert alpha == pytest.approx(1 - 0.999 * 0.3)
    sigma = torch.tensor([-math.log(alpha)])
    torch.testing.assert_close(process.noise_level(bundle.teacher, t), sigma)
    size = original.config.vocab_size
    z = torch.full((1, 4), size - 1)
    with torch.no_grad():
        outputs = original(z, sigma)[0].double()
    if graph == "absorb":  # scaled by sigma, as in the code
        outputs = outputs - math.log(math.expm1(float(sigma))) - math.log(size - 1)
    score = outputs.exp().scatter(1, z.T, 1.0)
    rate = float(-process.schedule.alpha_prime(t) / process.schedule.alpha(t))
    weights = process.euler_weights(original(z, sigma)[0].detach(), z[0], 0.3, 0.3 - 1e-3)
    expected = score * rate * 1e-3 / (1 if graph == "absorb" else size)
    expected[:, -1] = 1 - expected[:, :-1].sum(1)  # the token of the state
    torch.testing.assert_close((weights / weights.sum(1, keepdim=True)).double(), expected, rtol=1e-5, atol=1e-7)
    assert len(didi.generate(bundle, num_samples=2, nfe=4).tokens) == 2
    assert bool(nats_per_token(bundle.teacher, process, z[:, :4] * 0, batch_size=1) > 0)


def test_scores_of_sedd_that_are_not_scaled_are_a_denoisers_logits(tmp_path):
    """At a mask, p_t(y)/p_t(mask) = P(x0 = y) alpha/(1 - alpha), so its softmax is that of x0 at any noise level."""
    config = SEDD_CONFIG | {"model": SEDD_CONFIG["model"] | {"scale_by_sigma": False}}
    bundle = converted("sedd", folder(tmp_path / "hub", prefixed(network(is_time_conditioned=True)), config), tmp_path)
    assert (bundle.process.name, bundle.process.schedule.name) == ("absorbing", "log-linear-eps")


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ({"type": "geometric", "sigma_min": 1e-5}, "geometric"),
        ({"type": "geometric"}, "geometric-1e-4"),
    ],
)
def test_the_noise_of_sedd_sets_the_schedule(tmp_path, noise, expected):
    source = folder(tmp_path / "hub", prefixed(network(is_time_conditioned=True)), SEDD_CONFIG | {"noise": noise})
    assert converted("sedd", source, tmp_path).process.schedule.name == expected


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"type": "geometric", "sigma_min": 1e-3}, "from 1e-5 or 1e-4 to 20 here; config.json says from 0.001 to 20"),
        ({"type": "cosine"}, "noise is one of loglinear, geometric; config.json says 'cosine'"),
    ],
)
def test_another_noise_of_sedd_is_refused(tmp_path, noise, message):
    source = folder(tmp_path / "hub", prefixed(network(is_time_conditioned=True)), SEDD_CONFIG | {"noise": noise})
    with pytest.raises(UsageError, match=message):
        converted("sedd", source, tmp_path)


def test_another_graph_of_sedd_is_refused(tmp_path):
    source = folder(tmp_path / "hub", prefixed(network()), SEDD_CONFIG | {"graph": {"type": "roulette"}})
    with pytest.raises(UsageError, match=r"graph is one of absorb, uniform; config.json says 'roulette'"):
        converted("sedd", source, tmp_path)


def test_a_network_of_duo_is_sampled_with_the_uniform_process(tmp_path):
    original = network()
    bundle = converted("duo", folder(tmp_path / "hub", prefixed(original), MDLM_CONFIG), tmp_path)
    assert same(bundle.teacher, original, torch.tensor([0.5, 2.0]))
    assert bundle.teacher.config.mask_id is None
    assert (bundle.process.name, bundle.process.schedule.name) == ("uniform", "log-linear-eps")
    assert len(didi.generate(bundle, num_samples=2, nfe=4).tokens) == 2
    with pytest.raises(UsageError, match="first-hitting does not sample uniform diffusion"):
        didi.generate(bundle, num_samples=2, nfe=4, sampler="first-hitting")


class ReleasedHead(nn.Module):
    """Head of the released discriminator, with the spectral norm of older versions of torch."""

    def __init__(self, dim):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # deprecated in some versions of torch
            layers = [nn.utils.spectral_norm(nn.Linear(dim, dim)), nn.SiLU(), nn.utils.spectral_norm(nn.Linear(dim, 1))]
        self.main = nn.Sequential(*layers)


@pytest.mark.slow
def test_the_released_discriminator_is_converted_with_the_opposite_sign(tmp_path):
    torch.manual_seed(0)
    original = network()
    discriminator = Discriminator.from_denoiser(original)
    old = ReleasedHead(24)
    features = torch.randn(5, 24)
    for _ in range(3):  # power iterations
        old.main(features)
    old.eval()
    trunk = discriminator.trunk.state_dict()
    weights = trunk | {f"output_layer.{name}": value for name, value in old.state_dict().items()}
    source = folder(tmp_path / "didi", original.state_dict(), MDLM_CONFIG)
    save_file({name: value.clone() for name, value in weights.items()}, tmp_path / "didi" / "discriminator.safetensors")
    bundle = converted("didi", source, tmp_path)
    assert same(bundle.student, original)
    with torch.no_grad():
        expected = -old.main(features).squeeze(-1)
        torch.testing.assert_close(bundle.discriminator.output_layer(features), expected, rtol=0, atol=1e-6)
    assert bundle.discriminator.is_time_conditioned
    assert len(didi.generate(bundle, num_samples=2, nfe=4, sampler="guided").tokens) == 2
    save_file({name: value.clone() for name, value in trunk.items()}, tmp_path / "didi" / "discriminator.safetensors")
    with pytest.raises(UsageError, match=r"missing output_layer\.main\.0\.bias"):
        converted("didi", source, tmp_path)


def test_an_exported_network_is_converted_back_unchanged(tmp_path):
    bundle = didi.load("markov")
    out = export(bundle, tmp_path / "mdlm", "teacher")
    assert json.loads((out / "config.json").read_text())["n_heads"] == bundle.teacher.config.num_heads
    assert all(name.startswith(BACKBONE_PREFIX) for name in load_file(out / "model.safetensors"))
    back = converted("mdlm", str(out), tmp_path)
    assert back.teacher.config == bundle.teacher.config
    assert all(torch.equal(a, b) for a, b in zip(back.teacher.parameters(), bundle.teacher.parameters(), strict=True))
    with pytest.raises(UsageError, match="--out names a new folder"):
        export(bundle, tmp_path / "mdlm")


def test_a_network_with_convolutions_is_not_exported(tmp_path):
    bundle = didi.Bundle(teacher=network(conv_radius=2))
    with pytest.raises(UsageError, match="no convolutions"):
        export(bundle, tmp_path / "mdlm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_heads": "3"}, "num_heads is a whole number"),
        ({"model_length": -1}, "length is a whole number"),
        ({"model_length": 0}, "length is a whole number"),
        ({"n_heads": 0}, "num_heads is a whole number"),
        ({"n_heads": 5}, "hidden_size is a multiple"),
    ],
)
def test_wrong_settings_in_config_json_are_refused(tmp_path, config, message):
    with pytest.raises(UsageError, match=message):
        converted("mdlm", folder(tmp_path / "hub", network().state_dict(), config), tmp_path)


@pytest.mark.parametrize("config", [MDLM_CONFIG, {}])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--length", "length is a whole number, 1 or more; got 0"),
        ("--num-heads", "num_heads is a whole number, 1 or more; got 0"),
    ],
)
def test_zero_is_refused_as_any_other_wrong_number(tmp_path, config, flag, message):
    with pytest.raises(UsageError, match=message):
        converted("mdlm", folder(tmp_path / "hub", network().state_dict(), config), tmp_path, flag, "0")


@pytest.mark.slow
def test_a_tokenizer_larger_than_the_network_is_refused(tmp_path):
    source = folder(tmp_path / "hub", network().state_dict())
    didi.load("tiny-news").tokenizer.save(str(tmp_path / "hub" / "tokenizer.json"))
    with pytest.raises(UsageError, match="fit into the network's 31"):
        converted("mdlm", source, tmp_path)
    assert converted("mdlm", source, tmp_path, "--tokenizer", "none").tokenizer is None


def test_a_hub_name_with_other_characters_is_refused_by_the_hub_client(tmp_path):
    for name in ("owner/..", "own er/name", "owner/na\\me"):
        with pytest.raises(UsageError, match=r"no name of a Hub repository: Repo id must use alphanumeric chars"):
            converted("mdlm", name, tmp_path)


@pytest.mark.slow
def test_the_block_layout_is_that_of_the_public_checkpoints_unless_config_json_or_a_flag_sets_another(tmp_path):
    original = network()
    plain = folder(tmp_path / "plain", prefixed(original), MDLM_CONFIG)
    streamed = folder(tmp_path / "streamed", prefixed(original), MDLM_CONFIG | {"block_layout": "stream"})
    sedd = folder(tmp_path / "sedd", network(is_time_conditioned=True).state_dict(), SEDD_CONFIG)
    for layout, source, flags, expected in (
        ("mdlm", plain, (), "bos-eos"),
        ("mdlm", plain, ("--block-layout", "stream"), "stream"),
        ("mdlm", streamed, (), "stream"),
        ("mdlm", streamed, ("--block-layout", "bos-eos"), "bos-eos"),
        ("sedd", sedd, (), "stream"),
    ):
        assert converted(layout, source, tmp_path, *flags).provenance["block_layout"] == expected
    wrong = folder(tmp_path / "wrong", prefixed(original), MDLM_CONFIG | {"block_layout": ["x"]})
    with pytest.raises(UsageError, match=r"block_layout is one of stream, bos-eos; got \['x'\]"):
        converted("mdlm", wrong, tmp_path)


@pytest.mark.parametrize("provenance", [{}, {"block_layout": "bos-eos"}])
def test_an_exported_network_keeps_its_block_layout(tmp_path, provenance):
    export(didi.Bundle(teacher=network(), provenance=provenance), tmp_path / "public")
    layout = converted("mdlm", str(tmp_path / "public"), tmp_path).provenance["block_layout"]
    assert layout == provenance.get("block_layout", "stream")
