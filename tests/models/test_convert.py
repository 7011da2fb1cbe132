"""A checkpoint in the layout of MDLM gives the logits of the public code; damaged ones are refused with their keys."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from didi.errors import UsageError
from didi.models.convert import BACKBONE_PREFIX, dit_from_state_dict
from didi.models.dit import DiT, DiTConfig
from didi.recipes import PRETRAIN

NUM_HEADS = 3  # as in the header of the file
TENSORS = load_file(Path(__file__).parent / "data" / "mdlm_small.safetensors")
IO = {name.removeprefix("io."): value for name, value in TENSORS.items() if name.startswith("io.")}
WEIGHTS = {
    name.removeprefix(BACKBONE_PREFIX): value for name, value in TENSORS.items() if name.startswith(BACKBONE_PREFIX)
}


@pytest.fixture(scope="module", params=["", BACKBONE_PREFIX], ids=["bare keys", "backbone. keys"])
def network(request):
    return dit_from_state_dict({request.param + name: value for name, value in WEIGHTS.items()}, NUM_HEADS).eval()


# float32 sums in another order differ by about 1e-6 here; a wrong layout differs by 0.1 and more.
@pytest.mark.parametrize(
    ("inputs", "sigma", "expected"),
    [
        (IO["input_ids"], IO["sigma"], IO["logits"]),
        (IO["input_ids"], torch.zeros(3), IO["logits_sigma0"]),
        (IO["input_ids"], None, IO["logits_sigma0"]),
        (IO["soft_input_logits"].softmax(-1), None, IO["logits_from_soft"]),
    ],
    ids=["sigma", "zero sigma", "no sigma", "simplex"],
)
@torch.no_grad()
def test_a_public_checkpoint_gives_the_public_logits(network, inputs, sigma, expected):
    torch.testing.assert_close(network(inputs, sigma), expected, rtol=0, atol=1e-4)


def test_the_shape_is_read_from_the_checkpoint(network):
    config = network.config
    assert (config.vocab_size, config.hidden_size, config.num_blocks, config.cond_dim) == (31, 48, 2, 32)
    assert config.mask_id == 30
    assert not config.is_time_conditioned
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_network_has_a_copy_of_the_weights():
    network = dit_from_state_dict(WEIGHTS, NUM_HEADS)
    with torch.no_grad():
        network.vocab_embed.embedding.zero_()
    assert WEIGHTS["vocab_embed.embedding"].abs().max() > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_missing_key_is_named(name):
    with pytest.raises(UsageError, match=f"missing {name}(;|$)"):
        dit_from_state_dict({key: value for key, value in WEIGHTS.items() if key != name}, NUM_HEADS)


def test_a_tied_checkpoint_without_its_embedding_is_refused():
    without = {key: value for key, value in WEIGHTS.items() if key != "vocab_embed.embedding"}
    with pytest.raises(UsageError, match=r"missing vocab_embed\.embedding"):
        dit_from_state_dict(without, NUM_HEADS, is_tied=True)


@pytest.mark.parametrize("name", ["blocks.0.attn_qkv.bias", "blocks.1.norm1.bias", "output_layer.linear.scale", "ema"])
def test_an_extra_key_is_named(name):
    with pytest.raises(UsageError, match=f"extra {name}"):
        dit_from_state_dict(WEIGHTS | {name: torch.zeros(1)}, NUM_HEADS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_key_with_another_number_of_axes_is_named(name):
    with pytest.raises(UsageError, match=f"{name} has"):
        dit_from_state_dict(WEIGHTS | {name: WEIGHTS[name][None]}, NUM_HEADS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_key_with_another_size_is_refused(name):
    # The config is inferred from these two keys, so the message names the keys that disagree with them.
    reported = {
        "vocab_embed.embedding": "output_layer.linear.weight",
        "sigma_map.mlp.2.weight": "sigma_map.mlp.0.weight",
    }
    with pytest.raises(UsageError, match=f"{reported.get(name, name)} has shape"):
        dit_from_state_dict(WEIGHTS | {name: WEIGHTS[name][:-1]}, NUM_HEADS)


def test_every_problem_is_named_at_once():
    damaged = WEIGHTS | {"extra": torch.zeros(1), "blocks.0.norm1.weight": torch.zeros(3)}
    del damaged["blocks.1.norm2.weight"]
    with pytest.raises(
        UsageError, match=r"missing blocks.1.norm2.weight; extra extra; blocks.0.norm1.weight has shape"
    ):
        dit_from_state_dict(damaged, NUM_HEADS)


def test_a_key_both_with_and_without_prefix_is_refused():
    with pytest.raises(UsageError, match="both with and without"):
        dit_from_state_dict(WEIGHTS | {BACKBONE_PREFIX + "rotary_emb.inv_freq": torch.zeros(8)}, NUM_HEADS)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_not_floating_point_numbers_are_refused(dtype):
    name = "blocks.0.attn_qkv.weight"
    with pytest.raises(UsageError, match=f"floating-point numbers; {name} has {dtype}"):
        dit_from_state_dict(WEIGHTS | {name: WEIGHTS[name].to(dtype)}, NUM_HEADS)


def test_a_wrong_number_of_heads_shows_in_the_rotary_frequencies():
    with pytest.raises(UsageError, match=r"rotary_emb\.inv_freq has shape"):
        dit_from_state_dict(WEIGHTS, 4)


@pytest.mark.parametrize(
    ("recipe", "num_parameters"), [("owt-169m", 169_627_218), ("owt-424m", 424_477_010)], ids=["169M", "424M"]
)
def test_the_shapes_of_public_checkpoints_are_inferred_at_full_size(recipe, num_parameters):
    shape = PRETRAIN[recipe].network
    with torch.device("meta"):
        config = DiTConfig(
            vocab_size=50258,
            mask_id=50257,
            length=1024,
            hidden_size=shape.hidden_size,
            num_blocks=shape.num_blocks,
            num_heads=shape.num_heads,
        )
        weights = {BACKBONE_PREFIX + name: value for name, value in DiT(config).state_dict().items()}
        network = dit_from_state_dict(weights)
    assert network.config == config
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
