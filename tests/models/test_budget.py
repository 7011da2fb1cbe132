"""Networks that read the number of moves of the sampler that uses them."""

import copy
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
def told(make_dit):
    """A network whose weights for the number of moves are not zero."""
    return make_dit(seed=2, is_budget_conditioned=True, **SHAPE)


@pytest.fixture(scope="module")
def bundle(plain, told, make_discriminator):
    return Bundle(student=told, teacher=plain, discriminator=make_discriminator(told))


@torch.no_grad()
@pytest.mark.parametrize("is_time_conditioned", [True, False])
def test_a_fresh_network_is_its_teacher_at_every_budget(make_dit, is_time_conditioned):
    teacher = make_dit(seed=1, is_time_conditioned=is_time_conditioned, **SHAPE)
    level = SIGMA if is_time_conditioned else None
    fresh = budget_conditioned(teacher)
    made = DiT(replace(teacher.config, is_budget_conditioned=True)).eval()
    made.load_state_dict({**made.state_dict(), **teacher.state_dict()})
    plain_judge = Discriminator.from_denoiser(teacher)
    for network in (fresh, made):
        assert network.config == replace(teacher.config, is_budget_conditioned=True)
        judge = Discriminator.from_denoiser(network)
        judge.output_layer = plain_judge.output_layer
        for budget in (None, 1, 2, 3, 64):
            assert torch.equal(network.at_budget(budget)(TOKENS, level), teacher(TOKENS, level))
            assert torch.equal(judge.eval().at_budget(budget)(TOKENS, SIGMA), plain_judge.eval()(TOKENS, SIGMA))


@torch.no_grad()
def test_the_output_differs_by_budget_where_it_is_read_alone(plain, told, make_discriminator):
    for network in (told, make_discriminator(told)):
        outputs = [network.at_budget(budget)(TOKENS, None) for budget in (None, 1, 2, 3, 64)]
        for number, one in enumerate(outputs):
            assert all((one - other).abs().max() > 1e-3 for other in outputs[:number])
    for network in (plain, make_discriminator(plain)):
        assert network.at_budget(2) is network


@torch.no_grad()
def test_the_logarithm_of_the_budget_is_added_to_the_conditioning(told):
    expected = F.silu(told.sigma_map(SIGMA) + told.budget_map(torch.tensor([math.log2(6)])))
    torch.testing.assert_close(told.at_budget(6).conditioned(told.embed(TOKENS), SIGMA)[1], expected)


def test_networks_at_a_budget_share_all_weights_and_leave_the_original_as_it_is(bundle):
    for network in (bundle.student, bundle.discriminator):
        first, second = network.at_budget(2), network.at_budget(8)
        trunks = [getattr(one, "trunk", one) for one in (network, first, second)]
        assert [one.budget for one in trunks] == [None, 2, 8]
        assert first.at_budget(2) is first
        assert getattr(first.at_budget(None), "trunk", first.at_budget(None)).budget is None
        for one in (first, second):
            assert type(one) is type(network)
            pairs = zip(one.named_parameters(), network.named_parameters(), strict=True)
            assert all(a == b and p is q for (a, p), (b, q) in pairs)


@pytest.mark.parametrize("num_moves", [0, -1])
def test_less_than_a_move_is_refused(told, num_moves):
    with pytest.raises(UsageError, match=f"^a network is conditioned on 1 move or more; got {num_moves}$"):
        told.at_budget(num_moves)


def test_other_networks_have_the_weights_and_settings_that_they_had(plain, told):
    added = {f"budget_map.mlp.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert told.state_dict().keys() - plain.state_dict().keys() == added
    assert not plain.state_dict().keys() - told.state_dict().keys()
    settings = asdict(plain.config)
    del settings["is_budget_conditioned"]
    assert type(plain.config)(**settings) == plain.config


def test_frozen_blocks_leave_the_weights_of_the_budget_trained(bundle):
    judge = copy.deepcopy(bundle.discriminator)
    judge.train_last_blocks(1)
    trained = {name.split(".")[1] for name, one in judge.named_parameters() if one.requires_grad}
    assert trained == {"main", "blocks", "budget_map"}


@torch.no_grad()
def test_a_saved_bundle_is_loaded_unchanged(bundle, tmp_path):
    back = load(save(bundle, tmp_path / "bundle"))
    for role, network in bundle.networks().items():
        assert back.networks()[role].config == network.config
        assert weights_digest(back.networks()[role]) == weights_digest(network)
    torch.testing.assert_close(back.student.at_budget(3)(TOKENS), bundle.student.at_budget(3)(TOKENS))
    of_copy = save(bundle.at_budget(3), tmp_path / "copy")
    assert load_file(of_copy / "student/model.safetensors").keys() == bundle.student.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["int8", "bfloat16"])
def test_a_cheaper_network_reads_the_budget(bundle, numerics):
    cheap = for_inference(bundle, numerics)
    for role, network in bundle.networks().items():
        made = cheap.networks()[role]
        for budget in (None, 2, 9):
            exact, found = (one.at_budget(budget)(TOKENS, SIGMA) for one in (network, made))
            assert (found - exact).norm() / exact.norm() < 0.1
        first, second = (made.at_budget(budget)(TOKENS, SIGMA) for budget in (2, 9))
        assert torch.equal(first, second) == (role == "teacher")
    assert didi.generate(cheap, num_samples=2, nfe=3, sampler="guided").tokens.shape == (2, 6)


def test_a_compiled_network_that_reads_the_budget_is_refused(bundle):
    with pytest.raises(UsageError, match="a compiled network keeps one number of moves; those of bundle unnamed read"):
        for_inference(bundle, is_compiled=True)


def test_the_public_layout_has_no_place_for_it(told, plain):
    with pytest.raises(UsageError, match="the MDLM layout has no weights that read the number of moves"):
        mdlm_state_dict(told)
    assert mdlm_state_dict(plain)
