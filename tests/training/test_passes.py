"""The number of sequence passes that a step reports."""

import pytest
import torch

from didi.data.source import MarkovSource
from didi.methods.base import Inputs
from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DataConfig, LoopConfig, NetworkConfig
from didi.models.dit import DiT, DiTConfig
from didi.training.passes import PassCounter
from didi.training.trainer import make_trainer

NETWORK = NetworkConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=4)


def denoiser():
    return DiT(DiTConfig(vocab_size=5, mask_id=4, length=4, hidden_size=8, num_blocks=2, num_heads=1, cond_dim=4))


def test_a_pass_with_a_gradient_counts_three_times_and_one_without_once():
    trained, frozen = denoiser(), denoiser().requires_grad_(False)
    counter, rows = PassCounter([trained, frozen]), torch.zeros(3, 4, dtype=torch.long)
    trained(rows)
    assert counter.reset() == 9
    frozen(rows)
    assert counter.reset() == 3
    with torch.no_grad():
        trained(rows)
        frozen(rows[:1])
    assert counter.reset() == 4
    assert counter.reset() == 0


def test_a_pass_recomputed_in_the_backward_pass_counts_once_more():
    network = denoiser()
    network.keeps_activations = False
    counter = PassCounter([network])
    network(torch.zeros(3, 4, dtype=torch.long)).sum().backward()
    assert counter.reset() == 9 + 3


@pytest.mark.slow
def test_a_step_reports_its_own_passes_only():
    settings = PretrainConfig(
        data=DataConfig(corpus="markov", length=8), network=NETWORK, loop=LoopConfig(steps=2, batch_size=4)
    )
    trainer = make_trainer(settings, Inputs(MarkovSource(8, seed=0), torch.device("cpu")))
    assert trainer.step(0)["sequence_passes"] == 12
    trainer.validate()
    assert trainer.step(1)["sequence_passes"] == 12
