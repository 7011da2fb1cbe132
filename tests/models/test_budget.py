"""Networks that read the budget, the number of moves of the sampler that uses them."""

import copy
import itertools
import math
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import didi
from didi.errors import UsageError
from didi.models.bundle import Bundle, load, save
from didi.models.conditioning import budget_conditioned
from didi.models.convert import mdlm_state_dict
from didi.models.digest import weights_digest
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT
from didi.models.inference import for_inference

SHAPE = {"vocab_size": 7, "length": 6}
TOKENS = torch.randint(0, 7, (3, 6), generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.1, 0.5, 2.0])


@pytest.fixture(scope="module")
def plain(make_dit):
    return make_dit(seed=1, **SHAPE)


@pytest.fixture(scope="module")
def conditioned(make_dit):
    """A network whose weights for the number of moves are not zero."""
    return make_dit(seed=2, is_budget_conditioned=True, **SHAPE)


@pytest.fixture(scope="module")
def bundle(plain, conditioned, make_discriminator):
    return Bundle(student=conditioned, teacher=plain, discriminator=make_discriminator(conditioned))


@torch.no_grad()
@pytest.mark.parametrize("is_time_conditioned", [True, False])
def test_a_new_network_equals_its_teacher_at_every_budget(make_dit, is_time_conditioned):
    teacher = make_dit(seed=1, is_time_conditioned=is_time_conditioned, **SHAPE)
    level = SIGMA if is_time_conditioned else None
    copied = budget_conditioned(teacher)
    built = DiT(replace(teacher.config, is_budget_conditioned=True)).eval()
    built.load_state_dict({**built.state_dict(), **teacher.state_dict()})
    plain_discriminator = Discriminator.from_denoiser(teacher)
    for network in (copied, built):
        assert network.config == replace(teacher.config, is_budget_conditioned=True)
        discriminator = Discriminator.from_denoiser(network)
        discriminator.output_layer = plain_discriminator.output_layer
        for budget in (None, 1, 2, 3, 64):
            assert torch.equal(network.at_budget(budget)(TOKENS, level), teacher(TOKENS, level))
            expected = plain_discriminator.eval()(TOKENS, SIGMA)
            assert torch.equal(discriminator.eval().at_budget(budget)(TOKENS, SIGMA), expected)


@torch.no_grad()
def test_only_the_outputs_of_conditioned_networks_depend_on_the_budget(plain, conditioned, make_discriminator):
    for network in (conditioned, make_discriminator(conditioned)):
        outputs = [network.at_budget(budget)(TOKENS, None) for budget in (None, 1, 2, 3, 64)]
        for first, second in itertools.combinations(outputs, 2):
            assert (first - second).abs().max() > 1e-3
    for network in (plain, make_discriminator(plain)):
        assert network.at_budget(2) is network


@torch.no_grad()
def test_the_logarithm_of_the_budget_is_added_to_the_conditioning(conditioned):
    expected = F.silu(conditioned.sigma_map(SIGMA) + conditioned.budget_map(torch.tensor([math.log2(6)])))
    torch.testing.assert_close(conditioned.at_budget(6).conditioned(conditioned.embed(TOKENS), SIGMA)[1], expected)


def test_networks_at_a_budget_share_all_weights_with_the_unchanged_original(bundle):
    for network in (bundle.student, bundle.discriminator):
        first, second = network.at_budget(2), network.at_budget(8)
        trunks = [getattr(model, "trunk", model) for model in (network, first, second)]
        assert [trunk.budget for trunk in trunks] == [None, 2, 8]
        assert first.at_budget(2) is first
        assert getattr(first.at_budget(None), "trunk", first.at_budget(None)).budget is None
        for copied in (first, second):
            assert type(copied) is type(network)
            pairs = zip(copied.named_parameters(), network.named_parameters(), strict=True)
            assert all(name == other_name and value is other for (name, value), (other_name, other) in pairs)


@pytest.mark.parametrize("num_moves", [0, -1])
def test_less_than_one_move_is_refused(conditioned, num_moves):
    with pytest.raises(UsageError, match=f"^a network is conditioned on 1 move or more; got {num_moves}$"):
        conditioned.at_budget(num_moves)


def test_unconditioned_networks_have_no_new_weights_or_settings(plain, conditioned):
    added = {f"budget_map.mlp.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert conditioned.state_dict().keys() - plain.state_dict().keys() == added
    assert not plain.state_dict().keys() - conditioned.state_dict().keys()
    settings = asdict(plain.config)
    del settings["is_budget_conditioned"]
    assert type(plain.config)(**settings) == plain.config


def test_the_weights_of_the_budget_are_trained_beside_frozen_blocks(bundle):
    discriminator = copy.deepcopy(bundle.discriminator)
    discriminator.train_last_blocks(1)
    parameters = discriminator.named_parameters()
    trained = {name.split(".")[1] for name, parameter in parameters if parameter.requires_grad}
    assert trained == {"main", "blocks", "budget_map"}


@torch.no_grad()
def test_a_saved_bundle_is_loaded_unchanged(bundle, tmp_path):
    loaded = load(save(bundle, tmp_path / "bundle"))
    for role, network in bundle.networks().items():
        assert loaded.networks()[role].config == network.config
        assert weights_digest(loaded.networks()[role]) == weights_digest(network)
    torch.testing.assert_close(loaded.student.at_budget(3)(TOKENS), bundle.student.at_budget(3)(TOKENS))
    copied = save(bundle.at_budget(3), tmp_path / "copy")
    assert load_file(copied / "student/model.safetensors").keys() == bundle.student.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["int8", "bfloat16"])
def test_int8_and_bfloat16_networks_read_the_budget(bundle, numerics):
    low_precision = for_inference(bundle, numerics)
    for role, network in bundle.networks().items():
        fast = low_precision.networks()[role]
        for budget in (None, 2, 9):
            exact, approximate = (model.at_budget(budget)(TOKENS, SIGMA) for model in (network, fast))
            assert (approximate - exact).norm() / exact.norm() < 0.1
        first, second = (fast.at_budget(budget)(TOKENS, SIGMA) for budget in (2, 9))
        assert torch.equal(first, second) == (role == "teacher")
    assert didi.generate(low_precision, num_samples=2, nfe=3, sampler="guided").tokens.shape == (2, 6)


def test_a_compiled_network_that_reads_the_budget_is_refused(bundle):
    with pytest.raises(UsageError, match="a compiled network keeps one number of moves; those of bundle unnamed read"):
        for_inference(bundle, is_compiled=True)


def test_the_public_layout_cannot_store_the_weights_of_the_budget(conditioned, plain):
    with pytest.raises(UsageError, match="the MDLM layout has no weights that read the number of moves"):
        mdlm_state_dict(conditioned)
    assert mdlm_state_dict(plain)
