"""Padding does not affect real positions if it is masked out."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.models.nelbo import nelbo_draws

LENGTHS = [3, 8, 5, 1]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=[0, 2], ids=["attention only", "convolution"])
def network(request, make_dit):
    return make_dit(vocab_size=7, length=8, conv_radius=request.param)


@pytest.fixture(scope="module")
def canvas():
    tokens = torch.randint(7, (len(LENGTHS), 8), generator=named_generator("padded"))
    return Canvas.padded(tokens, torch.tensor(LENGTHS))


SIGMA = torch.tensor([0.1, 0.5, 1.0, 3.0])


@torch.no_grad()
def test_features_and_logits_equal_those_of_each_sequence_alone(network, canvas):
    for sigma in (None, SIGMA):
        features = network.features(canvas.tokens, sigma, canvas.attention_mask)
        logits = network(canvas.tokens, sigma, canvas.attention_mask)
        unmasked = network.features(canvas.tokens, sigma)
        for row, length in enumerate(LENGTHS):
            inputs = canvas.tokens[row : row + 1, :length], None if sigma is None else sigma[row : row + 1]
            torch.testing.assert_close(features[row, :length], network.features(*inputs)[0], **CLOSE)
            torch.testing.assert_close(logits[row, :length], network(*inputs)[0], **CLOSE)
            is_same = torch.allclose(unmasked[row, :length], network.features(*inputs)[0], atol=1e-3)
            assert is_same == (length == 8)  # without the mask padding does matter


@pytest.mark.parametrize("output", ["token", "sequence"])
@torch.no_grad()
def test_discriminator_logits_equal_those_of_each_sequence_alone(network, canvas, make_discriminator, output):
    discriminator = make_discriminator(network, output=output)
    actual = discriminator(canvas.tokens, SIGMA, canvas.attention_mask)
    for row, length in enumerate(LENGTHS):
        alone = discriminator(canvas.tokens[row : row + 1, :length], SIGMA[row : row + 1])[0]
        torch.testing.assert_close(actual[row, :length] if output == "token" else actual[row], alone, **CLOSE)


def test_no_gradient_flows_from_padding(network, canvas):
    simplex = torch.nn.functional.one_hot(canvas.tokens, 7).float().requires_grad_(True)
    logits = network(simplex, SIGMA, canvas.attention_mask)
    (gradient,) = torch.autograd.grad(logits[canvas.is_real].square().sum(), simplex)
    assert gradient.isfinite().all()
    assert (gradient[~canvas.is_real] == 0).all()
    assert (gradient[canvas.is_real].abs().sum(-1) > 0).all()


@torch.no_grad()
def test_the_nelbo_of_a_padded_batch_equals_that_of_its_sequences(network, canvas):
    process, clean = Absorbing(6), canvas.tokens.clamp(max=5)
    padded = Canvas(clean.masked_fill(~canvas.is_real, 6), canvas.is_free, canvas.is_real, has_padding=True)
    actual = nelbo_draws(network, process, padded, 3, [named_generator(row) for row in range(4)])
    for row, length in enumerate(LENGTHS):
        alone = nelbo_draws(network, process, Canvas.free(clean[row : row + 1, :length]), 3, [named_generator(row)])
        torch.testing.assert_close(actual[row], alone[0], **CLOSE)
