"""The diffusion transformer: sizes of the paper, noise levels, positions, dropout, precision and local convolution."""

import pytest
import torch

from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.denoiser import logits_at
from didi.models.discriminator import Discriminator, DiscriminatorConfig, num_parameters
from didi.models.dit import DiT, DiTConfig

# float32 sums in another order; the logits here are of size 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def network(make_dit):
    return make_dit(vocab_size=7, length=6)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(7, (3, 6), generator=named_generator("ids"))


# Tables 3-4 give these in millions: 169, 131, 424, 373. V = 50,258 of the public checkpoints, the mask included.
@pytest.mark.parametrize(
    ("hidden_size", "num_blocks", "num_heads", "num_denoiser", "num_discriminator"),
    [(768, 12, 12, 169_627_218, 131_371_265), (1024, 24, 16, 424_477_010, 373_747_969)],
)
def test_parameter_counts_match_the_paper(hidden_size, num_blocks, num_heads, num_denoiser, num_discriminator):
    shape = {"hidden_size": hidden_size, "num_blocks": num_blocks, "num_heads": num_heads}
    with torch.device("meta"):
        denoiser = DiT(DiTConfig(50_258, 50_257, 1024, **shape))
        discriminator = Discriminator(DiscriminatorConfig(50_258, 50_257, 1024, **shape))
    assert num_parameters(denoiser) == num_denoiser
    assert num_parameters(discriminator) == num_discriminator


@torch.no_grad()
def test_the_head_of_the_features_gives_the_logits_of_a_forward_pass(network, ids):
    sigma = torch.tensor([0.0, 1.0, 3.0])
    features = network.features(ids, sigma)
    assert torch.equal(network.head(features), network(ids, sigma))
    is_selected = torch.rand(3, 6, generator=named_generator("selected")) < 0.5
    rows = logits_at(network, ids, is_selected, sigma)
    torch.testing.assert_close(rows, network(ids, sigma)[is_selected], **CLOSE)
    torch.testing.assert_close(network.head(features[1, 2]), network(ids, sigma)[1, 2], **CLOSE)


@torch.no_grad()
def test_one_hot_inputs_give_the_logits_of_token_ids(network, ids):
    simplex = torch.nn.functional.one_hot(ids, 7).float()
    torch.testing.assert_close(network(simplex), network(ids), **CLOSE)


def test_logits_can_be_differentiated_with_respect_to_distributions(network, ids):
    simplex = torch.nn.functional.one_hot(ids, 7).float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(simplex)[:, 0].sum(), simplex)
    assert (gradient.abs().amax((0, 2)) > 0).all()


@torch.no_grad()
def test_rows_of_a_batch_are_independent_and_have_their_own_noise_levels(network, ids):
    sigma = torch.tensor([0.0, 1.0, 3.0])
    alone = torch.cat([network(ids[row : row + 1], sigma[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(network(ids, sigma), alone, **CLOSE)
    torch.testing.assert_close(network(ids)[0], alone[0], **CLOSE)
    assert (network(ids)[1:] - alone[1:]).abs().amax((1, 2)).min() > 0.01


@torch.no_grad()
def test_every_position_depends_on_all_tokens_and_their_order(network):
    ids = torch.tensor([[0, 1, 2, 3, 4, 5]])
    logits = network(ids)
    for position in range(6):
        changed = ids.clone()
        changed[0, position] = 6
        assert ((network(changed) - logits).abs().amax(2) > 1e-4).all()
    assert (network(ids.flip(1)).flip(1) - logits).abs().max() > 0.01


@torch.no_grad()
def test_rotary_positions_are_relative(network):
    # With equal tokens, logits could differ by absolute position only.
    same = network(torch.full((1, 6), 2))
    torch.testing.assert_close(same, same[:, :1].expand_as(same), **CLOSE)


@torch.no_grad()
def test_all_logits_of_a_new_denoiser_are_zero(tiny_config):
    logits = DiT(tiny_config(vocab_size=7, length=6))(torch.zeros(1, 6, dtype=torch.long))
    assert torch.equal(logits, torch.zeros(1, 6, 7))


@torch.no_grad()
def test_dropout_acts_in_training_mode_only(make_dit, ids):
    network = make_dit(vocab_size=7, length=6, dropout=0.5)
    assert torch.equal(network(ids), network(ids))
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network(ids), network(ids))


@torch.no_grad()
def test_norms_stay_in_float32_under_autocast(network, ids):
    norms = []
    handle = network.blocks[0].norm1.register_forward_hook(lambda module, inputs, output: norms.append(output.dtype))
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = network(ids)
    finally:
        handle.remove()
    assert norms == [torch.float32]
    assert low.dtype == torch.bfloat16
    # bfloat16 has 8 significant bits: over two blocks, errors of about 1% of logits of size 1.
    torch.testing.assert_close(low.float(), network(ids), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18, "num_heads": 2}, "multiple of 2 \\* num_heads"),
        ({"mask_id": 4}, "mask_id lies in"),
        ({"mask_id": -1}, "mask_id lies in"),
    ],
)
def test_an_impossible_shape_is_refused(tiny_config, changes, message):
    with pytest.raises(UsageError, match=message):
        tiny_config(**changes)


def test_the_local_convolution_starts_as_the_identity_and_mixes_neighbours_within_its_radius():
    torch.manual_seed(0)
    shape = {"vocab_size": 9, "mask_id": 8, "length": 7, "hidden_size": 8, "num_blocks": 1, "num_heads": 2}
    plain, mixing = DiT(DiTConfig(**shape)), DiT(DiTConfig(**shape, conv_radius=2))
    missing, unexpected = mixing.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["blocks.0.conv.weight"], [])
    tokens = torch.arange(7)[None]
    assert torch.equal(plain.features(tokens), mixing.features(tokens))

    conv = mixing.blocks[0].conv
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(1, 7, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 2, 2)).transpose(1, 2)
    kernel = conv.weight.t()[:, None]
    expected = x + torch.nn.functional.conv1d(padded, kernel, groups=8).transpose(1, 2)
    torch.testing.assert_close(conv(x), expected)
