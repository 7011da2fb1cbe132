"""Entropy-bounded decoding reveals positions in order of entropy, as many as the bound allows."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.sampling.base import time_grid
from didi.sampling.entropy_bounded import EntropyBounded

NUM = 4000
LOG_LINEAR = Absorbing(3)


def entropies(enumerated):
    """Entropies of the two positions while both are masked."""
    probs = enumerated.table[15, :, :3].double().softmax(-1)
    return -(probs * probs.log()).sum(-1)


def test_a_bound_of_zero_reveals_one_token_a_pass_the_least_uncertain_first(enumerated, tabular, draw, chi_square):
    first = int(entropies(enumerated).argmin())
    probs = enumerated.table[..., :3].double().softmax(-1)
    distribution = torch.zeros(3, 3, dtype=torch.float64)
    for token in range(3):
        if first == 0:
            distribution[token] = probs[15, 0, token] * probs[token * 4 + 3, 1]
        else:
            distribution[:, token] = probs[15, 1, token] * probs[12 + token, 0]
    steps, drawn = draw(EntropyBounded(tabular(enumerated.table), LOG_LINEAR, entropy_bound=0.0), num=NUM, nfe=9)
    assert [step.is_changed[:, first].all().item() for step in steps] == [True, False]
    assert [step.t for step in steps] == [pytest.approx(0.5), 0.0]
    assert chi_square(drawn, distribution.flatten()) > 1e-3


def test_the_sum_of_entropies_but_the_largest_stays_under_the_bound(enumerated, tabular, draw, chi_square):
    least = float(entropies(enumerated).min())
    steps, drawn = draw(
        EntropyBounded(tabular(enumerated.table), LOG_LINEAR, entropy_bound=least + 1e-6), num=NUM, nfe=9
    )
    assert len(steps) == 1
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table], LOG_LINEAR)) > 1e-3
    steps, _ = draw(EntropyBounded(tabular(enumerated.table), LOG_LINEAR, entropy_bound=least - 1e-6), num=10, nfe=9)
    assert len(steps) == 2


@torch.no_grad()
def test_sequences_take_different_numbers_of_passes_and_prompts_stay(make_dit, canvas_of):
    network = make_dit(vocab_size=9, length=12, seed=1, is_time_conditioned=True)
    z = torch.full((3, 12), network.mask_id)
    z[1, :6] = 1
    z[2] = 2
    sampler, prompts = EntropyBounded(network, Absorbing(network.mask_id), entropy_bound=5.0), z.clone()
    steps = list(sampler(canvas_of(z, network.mask_id), time_grid(1), SequenceNoise(0, range(3))))
    passes = torch.stack([step.network_passes for step in steps]).sum(0).tolist()
    assert passes[0] > passes[1] > passes[2] == 0
    assert (steps[-1].z != network.mask_id).all()
    assert torch.equal(steps[-1].z[prompts != network.mask_id], prompts[prompts != network.mask_id])
    # A sequence that is sampled alone gets the same tokens.
    alone = list(sampler(canvas_of(prompts[1:2], network.mask_id), time_grid(1), SequenceNoise(0, [1])))
    assert torch.equal(alone[-1].z[0], steps[-1].z[1])


def test_a_negative_bound_is_refused(enumerated, tabular):
    with pytest.raises(UsageError, match="entropy_bound is 0 or more"):
        EntropyBounded(tabular(enumerated.table), LOG_LINEAR, entropy_bound=-1.0)
