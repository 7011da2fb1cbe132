"""Every network of proteins as a denoiser of padded sequences."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.models.bert import Bert, BertConfig
from didi.models.bundle import Bundle, load, save
from didi.models.denoiser import Denoiser, Trunk
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.inference import for_inference
from didi.models.proteins import MASK_ID

SHAPE = {"hidden_size": 24, "num_blocks": 2, "num_heads": 2, "inner_size": 40}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
RESIDUES = slice(4, 24)


@pytest.fixture(scope="module", params=["esm2", "bert"])
def network(request, randomise):
    if request.param == "esm2":
        return randomise(Esm2(Esm2Config(**SHAPE)))
    return randomise(Bert(BertConfig(**SHAPE, length=16)))


@torch.no_grad()
def test_a_padded_batch_has_the_features_of_its_sequences(network, canvas):
    tokens = canvas.tokens.masked_fill(~canvas.is_real, MASK_ID)  # tokens at padding must not matter
    features = network.features(tokens, None, canvas.attention_mask)
    for row, length in enumerate(canvas.is_real.sum(-1)):
        alone = network.features(canvas.tokens[row : row + 1, :length])[0]
        torch.testing.assert_close(features[row, :length], alone, **CLOSE)


@torch.no_grad()
def test_a_sequence_of_masks_only_has_finite_logits(network):
    logits = network(torch.full((1, 5), MASK_ID))
    assert logits[..., RESIDUES].isfinite().all()


@pytest.mark.parametrize("output", ["sequence", "token"])
@torch.no_grad()
def test_discriminator_logits_equal_those_of_each_sequence_alone(network, canvas, make_discriminator, output):
    discriminator = make_discriminator(network, output=output)
    assert not discriminator.is_time_conditioned
    copied, given = discriminator.trunk.state_dict(), network.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in copied.items())
    logits = discriminator(canvas.tokens, None, canvas.attention_mask)
    assert logits.shape == ((4, 12) if output == "token" else (4,))
    for row, length in enumerate(canvas.is_real.sum(-1)):
        alone = discriminator(canvas.tokens[row : row + 1, :length])[0]
        torch.testing.assert_close(logits[row, :length] if output == "token" else logits[row], alone, **CLOSE)


def test_a_saved_bundle_is_loaded_with_network_and_discriminator(network, tmp_path, make_discriminator):
    bundle = Bundle(teacher=network, discriminator=make_discriminator(network))
    save(bundle, tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    assert loaded.process == Absorbing(MASK_ID)
    for role in ("teacher", "discriminator"):
        before, after = getattr(bundle, role), getattr(loaded, role)
        assert (type(after), after.config) == (type(before), before.config)
        torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)


def test_the_network_meets_the_protocols_of_denoisers(network):
    assert isinstance(network, Denoiser)
    assert isinstance(network, Trunk)
    assert network.at_budget(3) is network


def test_activation_checkpointing_changes_no_gradient(network, canvas):
    gradients = []
    for keeps_activations in (True, False):
        network.keeps_activations = keeps_activations
        network.zero_grad()
        logits = network(canvas.tokens, None, canvas.attention_mask)
        logits[canvas.is_free][:, RESIDUES].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    network.keeps_activations = True
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)
        assert kept.abs().sum() > 0


@pytest.mark.parametrize("numerics", ["bfloat16", "int8"])
@torch.no_grad()
def test_an_int8_or_bfloat16_trunk_has_nearly_the_same_logits(network, canvas, numerics):
    low_precision = for_inference(Bundle(teacher=network), numerics).teacher
    logits, exact = (
        model(canvas.tokens, None, canvas.attention_mask)[canvas.is_real][:, RESIDUES]
        for model in (low_precision, network)
    )
    assert 0 < (logits - exact).abs().max() < 0.4 * exact.std()
