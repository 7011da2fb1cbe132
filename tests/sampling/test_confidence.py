"""Confidence decoding reveals the most confident positions first, with exact distributions for each measure."""

import itertools

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.sampling.base import time_grid
from didi.sampling.confidence import ConfidenceDecoding, ConfidenceOrder

NUM = 4000
LOG_LINEAR = Absorbing(3)


def confidence(measure, probs, token):
    """Confidence in a position with ``probs`` where ``token`` is drawn."""
    if measure == "probability":
        return float(probs[token])
    if measure == "entropy":
        return float((probs * probs.log()).sum())
    first, second = probs.topk(2).values.tolist()
    return first - second


def most_confident_first_probs(enumerated, measure):
    """Exact distribution of the samples if the position of higher confidence is revealed first."""
    probs = enumerated.table[..., :3].double().softmax(-1)
    distribution = torch.zeros(3, 3, dtype=torch.float64)
    for first, second in itertools.product(range(3), repeat=2):
        mass = probs[15, 0, first] * probs[15, 1, second]
        confidences = [confidence(measure, probs[15, 0], first), confidence(measure, probs[15, 1], second)]
        if confidences[0] >= confidences[1]:
            distribution[first] += mass * probs[first * 4 + 3, 1]
        else:
            distribution[:, second] += mass * probs[12 + second, 0]
    return distribution.flatten()


@pytest.mark.parametrize("measure", ["probability", "margin", "entropy"])
def test_samples_follow_the_distribution_of_the_most_confident_first(enumerated, tabular, draw, chi_square, measure):
    sampler = ConfidenceDecoding(tabular(enumerated.table), LOG_LINEAR, ConfidenceOrder(measure))
    steps, drawn = draw(sampler, num=NUM, nfe=2)
    assert all((step.is_changed.sum(1) == 1).all() for step in steps)
    assert chi_square(drawn, most_confident_first_probs(enumerated, measure)) > 1e-3


@pytest.mark.parametrize(("measure", "first"), [("margin", 1), ("entropy", 0)])
def test_margin_and_entropy_choose_different_positions(enumerated, tabular, draw, measure, first):
    """In the model of the other tests both choose the same position, and ``probability`` another distribution."""
    by_probability, by_margin, by_entropy = (
        most_confident_first_probs(enumerated, other) for other in ("probability", "margin", "entropy")
    )
    assert (by_probability - by_margin).abs().max() > 0.01
    assert torch.equal(by_margin, by_entropy)
    # Margins are 0.05 and 0.1, entropies 0.86 and 1.09 nats.
    probs = torch.tensor([[0.5, 0.45, 0.05, 1.0], [0.4, 0.3, 0.3, 1.0]])
    sampler = ConfidenceDecoding(tabular(probs.log().expand(16, 2, 4)), LOG_LINEAR, ConfidenceOrder(measure))
    steps, _ = draw(sampler, num=20, nfe=2)
    assert steps[0].is_changed[:, first].all()
    assert not steps[0].is_changed[:, 1 - first].any()


def test_one_move_has_the_distribution_of_the_network(enumerated, tabular, draw, chi_square):
    _, drawn = draw(ConfidenceDecoding(tabular(enumerated.table), LOG_LINEAR), num=NUM, nfe=1)
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table], LOG_LINEAR)) > 1e-3


def test_gumbel_noise_on_the_confidence_randomises_the_order(enumerated, tabular, draw):
    probs = enumerated.table[15, :, :3].softmax(-1)
    more_confident = int(confidence("entropy", probs[1], 0) > confidence("entropy", probs[0], 0))
    for gumbel, low, high in ((0.0, 1.0, 1.0), (50.0, 0.4, 0.6)):
        sampler = ConfidenceDecoding(tabular(enumerated.table), LOG_LINEAR, ConfidenceOrder("entropy", gumbel))
        steps, _ = draw(sampler, num=1000, nfe=2)
        assert low <= float(steps[0].is_changed[:, more_confident].double().mean()) <= high


@torch.no_grad()
def test_each_move_leaves_the_expected_number_of_masks_and_prompts_stay(make_dit, canvas_of):
    network = make_dit(vocab_size=9, length=12, seed=1)
    z = torch.full((3, 12), network.mask_id)
    z[1, :6] = 1
    z[2] = 2
    sampler = ConfidenceDecoding(network, Absorbing(network.mask_id))
    left, prompts = [], z.clone()
    for step in sampler(canvas_of(z, network.mask_id), time_grid(4), SequenceNoise(0, range(3))):
        left.append((step.z == network.mask_id).sum(1).tolist())
        assert torch.equal(step.z[prompts != network.mask_id], prompts[prompts != network.mask_id])
        assert step.network_passes[2] == 0
    assert left == [[9, 4, 0], [6, 3, 0], [3, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"measure": "rank"}, "a confidence measure is one of probability, margin, entropy; got 'rank'"),
        ({"gumbel": -1.0}, r"gumbel lies in \[0, 1e\+30\]; got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(unchecked, values, message):
    with pytest.raises(UsageError, match=message):
        ConfidenceOrder(**values)
