"""Names of weights in checkpoints: prefixes of wrappers are removed, and the networks of a file are separated."""

import itertools

import pytest
import torch

from didi.errors import UsageError
from didi.models.checkpoint_keys import bare_keys, by_network

KEY = "blocks.0.attn_qkv.weight"
PREFIXES = [
    "".join(order)
    for number in range(4)
    for order in itertools.permutations(("module.", "_orig_mod.", "backbone."), number)
]


@pytest.mark.parametrize("prefix", [*PREFIXES, "backbone.backbone.", "module.backbone._orig_mod.backbone."])
def test_prefixes_are_removed_in_any_order(prefix):
    assert list(bare_keys({prefix + KEY: torch.ones(1)})) == [KEY]


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0._orig_mod.attn_qkv.weight",
        "blocks.0.module.attn_qkv.weight",
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.attn_qkv.weight",
    ],
)
def test_wrappers_are_removed_from_the_middle(key):
    assert list(bare_keys({key: torch.ones(1)})) == [KEY]


@pytest.mark.parametrize("key", ["submodule.weight", "blocks.0.backbone.weight", "my_backbone.weight", "backbone"])
def test_names_that_only_resemble_prefixes_are_kept(key):
    assert list(bare_keys({key: torch.ones(1)})) == [key]


@pytest.mark.parametrize("prefix", [prefix for prefix in PREFIXES if prefix])
def test_the_same_key_with_and_without_prefixes_is_refused(prefix):
    with pytest.raises(UsageError, match=f"{KEY} both with and without a prefix"):
        bare_keys({KEY: torch.ones(1), prefix + KEY: torch.ones(1)})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_networks_are_separated_and_keep_the_order_of_keys(prefix):
    networks = by_network(
        {
            f"{prefix}reward_baseline": torch.zeros(()),
            f"{prefix}noise.sigma_max": torch.zeros(1),
            f"{prefix}teacher.{KEY}": torch.zeros(1),
            f"{prefix}discriminator.{KEY}": torch.full((1,), 1),
            f"{prefix}student_ema._orig_mod.{KEY}": torch.full((1,), 2),
            f"{prefix}student_ema.backbone.first": torch.full((1,), 3),
            f"backbone.{prefix}second": torch.full((1,), 4),
            f"backbone.{prefix}first": torch.full((1,), 5),
        }
    )
    assert {network: {key: int(value) for key, value in weights.items()} for network, weights in networks.items()} == {
        "backbone": {"second": 4, "first": 5},
        "student_ema": {KEY: 2, "first": 3},
        "discriminator": {KEY: 1},
    }
    assert list(networks["backbone"]) == ["second", "first"]
