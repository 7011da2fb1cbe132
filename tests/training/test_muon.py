"""Muon: orthogonalised updates, the weights that it takes, step size, precision, and resumption."""

import pytest
import torch
from torch import nn

from didi.data.source import MarkovSource
from didi.methods.base import Inputs
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig, OptimizerConfig
from didi.models.dit import DiT, DiTConfig
from didi.training.muon import Muon, orthogonalised
from didi.training.optim import clip_and_step, make_optimizer
from didi.training.trainer import make_trainer


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 5, 8), (1, 6, 6)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    assert s.max() / s.min() > 2
    result = orthogonalised(matrices)
    rotated = u.mT @ result @ v.mT
    assert rotated.diagonal(dim1=-2, dim2=-1).sub(0.95).abs().max() < 0.3
    assert (rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4


def test_a_zero_gradient_gives_a_zero_step():
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def small_network():
    torch.manual_seed(0)
    return DiT(DiTConfig(vocab_size=7, mask_id=6, length=4, hidden_size=8, num_blocks=2, num_heads=2, conv_radius=1))


def test_muon_updates_the_matrices_of_the_blocks_only():
    network = small_network()
    optimizer = make_optimizer(network, OptimizerConfig(method="muon"))
    assert isinstance(optimizer, Muon)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    by_muon = {names[id(p)] for group in optimizer.param_groups if group.get("is_muon") for p in group["params"]}
    kinds = {name.split(".", 2)[2] for name in by_muon}
    assert kinds == {"attn_qkv.weight", "attn_out.weight", "mlp.0.weight", "mlp.2.weight"}
    assert len(by_muon) == 8
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_a_muon_step_has_the_size_of_an_adamw_step_and_decays_the_weights():
    matrix = nn.Parameter(torch.full((32, 8), 2.0))
    optimizer = Muon([{"params": [matrix], "is_muon": True, "weight_decay": 0.5}], lr=0.1)
    torch.manual_seed(0)
    matrix.grad = 1e3 * torch.randn(32, 8)
    optimizer.step()
    step = (2.0 * (1 - 0.1 * 0.5) - matrix.detach()) / 0.1
    assert 0.15 < float(step.square().mean().sqrt()) < 0.25


def test_iterations_in_bfloat16_take_nearly_the_same_step_and_keep_the_dtype_of_weights_and_momentum():
    def step(dtype):
        torch.manual_seed(0)
        matrix = nn.Parameter(torch.zeros(32, 8))
        optimizer = Muon([{"params": [matrix], "is_muon": True, "weight_decay": 0.0}], lr=0.1)
        optimizer.iteration_dtype = dtype
        matrix.grad = torch.randn(32, 8)
        optimizer.step()
        assert matrix.dtype == optimizer.state[matrix]["exp_avg"].dtype == torch.float32
        return matrix.detach()

    exact, rounded = step(torch.float32), step(torch.bfloat16)
    difference = float((rounded - exact).norm() / exact.norm())
    assert 1e-4 < difference < 0.1


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_iterations_have_the_precision_of_the_run(precision, dtype):
    settings = PretrainConfig(
        data=DataConfig(corpus="markov", length=8),
        network=NetworkConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=4),
        optimizer=OptimizerConfig(method="muon"),
        loop=LoopConfig(steps=1, precision=precision),
    )
    optimizer = make_trainer(settings, Inputs(MarkovSource(8, seed=0), torch.device("cpu"))).optimizers["network"]
    assert isinstance(optimizer, Muon)
    assert optimizer.iteration_dtype == dtype


def test_rates_of_both_optimizers_follow_the_schedule_and_training_resumes_bit_for_bit():
    def train(network, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            network(torch.randint(6, (2, 4))).square().sum().backward()
            clip_and_step(network, optimizer, config, rate=0.01 * (step + 1))

    config = OptimizerConfig(method="muon", muon_rate_scale=3.0)
    whole = small_network()
    nn.init.normal_(whole.output_layer.linear.weight)
    resumed = small_network()
    resumed.load_state_dict(whole.state_dict())
    optimizer = make_optimizer(whole, config)
    train(whole, optimizer, range(4))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.04, 0.04, 0.12])

    first = make_optimizer(resumed, config)
    train(resumed, first, range(2))
    second = make_optimizer(resumed, config)
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
