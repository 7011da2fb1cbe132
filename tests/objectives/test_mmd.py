"""Estimates of the discrepancy and its gradient compared with exact expectations over three outcomes."""

from itertools import product

import pytest
import torch

from didi.errors import UsageError
from didi.objectives import mmd
from didi.objectives.mmd import gaussian_kernel, median_distance, mmd_advantages, mmd_squared, sequence_kernel

NUM_STATES = 3  # three outcomes, so that there are 81 batches of four samples
NUM_SAMPLES = 4
OUTCOMES = torch.tensor(list(product(range(NUM_STATES), repeat=NUM_SAMPLES)))
LOGITS = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64)
DATA = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.fixture(scope="module")
def kernel():
    """Kernel of three sequences of two weighted points each."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, NUM_STATES, 2, 4, dtype=torch.float64, generator=generator)
    weights = torch.rand(1, NUM_STATES, 2, dtype=torch.float64, generator=generator)
    weights = weights / weights.sum(2, keepdim=True)
    bandwidths = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return sequence_kernel(points, points, bandwidths, weights, weights)[0]


def discrepancy(probs, kernel):
    """The squared discrepancy from the data, and its part that depends on the samples."""
    changing = probs @ kernel @ probs - 2 * probs @ kernel @ DATA
    return changing + DATA @ kernel @ DATA, changing


def exact_gradient(kernel):
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discrepancy(logits.softmax(0), kernel)[1], logits)
    return gradient


def expected_gradient(kernel, num_real=1, **settings):
    """Mean of the estimate over all batches of samples and of data, by their probabilities."""
    total = torch.zeros(NUM_STATES, dtype=torch.float64)
    probs, scores = LOGITS.softmax(0), torch.eye(NUM_STATES, dtype=torch.float64) - LOGITS.softmax(0)
    for real in product(range(NUM_STATES), repeat=num_real):
        rows = torch.tensor(real)
        sample_kernel = kernel[OUTCOMES[:, :, None], OUTCOMES[:, None, :]]
        cross_kernel = kernel[OUTCOMES[:, :, None], rows[None, None]]
        advantage = mmd_advantages(sample_kernel, cross_kernel, **settings)
        estimates = (advantage[..., None] * scores[OUTCOMES]).mean(1)
        total += (probs[OUTCOMES].prod(1)[:, None] * estimates).sum(0) * DATA[rows].prod()
    return total


@pytest.mark.parametrize("settings", [{"advantage": "groups", "group_size": 2}, {"advantage": "leave-one-out"}])
@pytest.mark.parametrize("num_real", [1, 2])
def test_the_policy_gradient_is_that_of_the_discrepancy(kernel, settings, num_real):
    torch.testing.assert_close(expected_gradient(kernel, num_real, **settings), exact_gradient(kernel))


def test_baselines_keep_the_expectation_and_leave_one_out_has_less_variance_than_groups(kernel):
    sample_kernel = kernel[OUTCOMES[:, :, None], OUTCOMES[:, None, :]]
    cross_kernel = (kernel @ DATA)[OUTCOMES][..., None]
    probs, scores = LOGITS.softmax(0), torch.eye(NUM_STATES, dtype=torch.float64) - LOGITS.softmax(0)
    weights = probs[OUTCOMES].prod(1)[:, None]
    others = sample_kernel.sum(2) - sample_kernel.diagonal(dim1=1, dim2=2)
    # Without a baseline: estimates of the derivatives of the discrepancy with respect to the samples' probabilities.
    costs = 2 * others / (NUM_SAMPLES - 1) - 2 * cross_kernel[..., 0]
    means, variances = [], []
    for advantage in (
        costs,
        mmd_advantages(sample_kernel, cross_kernel),
        mmd_advantages(sample_kernel, cross_kernel, advantage="groups"),
    ):
        estimates = (advantage[..., None] * scores[OUTCOMES]).mean(1)
        means.append((weights * estimates).sum(0))
        variances.append(float((weights * (estimates - means[-1]).square()).sum()))
    for mean in means:
        torch.testing.assert_close(mean, exact_gradient(kernel))
    assert variances[1] < 0.7 * variances[2]  # all pairs have less variance than those of a group


@pytest.mark.parametrize("settings", [{"advantage": "groups"}, {"advantage": "leave-one-out"}])
def test_samples_of_equal_cost_have_the_advantage_zero(settings):
    advantage = mmd_advantages(torch.full((1, 6, 6), 0.7), torch.full((1, 6, 2), 0.2), **settings)
    assert advantage.abs().max() < 1e-6


def test_the_estimate_of_the_discrepancy_is_unbiased(kernel):
    probs, pairs = LOGITS.softmax(0), list(product(range(NUM_STATES), repeat=2))
    expected = torch.zeros((), dtype=torch.float64)
    for first, second in product(pairs, pairs):
        x, y = torch.tensor(first), torch.tensor(second)
        estimate = mmd_squared(kernel[x[:, None], x], kernel[x[:, None], y], kernel[y[:, None], y])
        expected += probs[x].prod() * DATA[y].prod() * estimate
    torch.testing.assert_close(expected, discrepancy(probs, kernel)[0])


def test_a_kernel_of_sequences_is_the_mean_over_pairs_of_points(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 3, 2, 4, generator=generator), torch.randn(2, 2, 5, 4, generator=generator)
    bandwidths, weights = torch.tensor([0.7, 3.0]), torch.tensor([0.25, 0.75]).expand(2, 3, 2)
    distances = (first[:, :, None, :, None] - second[:, None, :, None, :]).square().sum(-1)
    pairs = sum(torch.exp(-distances / (2 * sigma**2)) for sigma in (0.7, 3.0)) / 2
    for max_pairs in (2**24, 1):  # all rows at once, or one by one
        monkeypatch.setattr(mmd, "_MAX_PAIRS", max_pairs)
        torch.testing.assert_close(sequence_kernel(first, second, bandwidths), pairs.mean((3, 4)))
        weighted = (pairs.mean(4) * weights[:, :, None]).sum(3)
        torch.testing.assert_close(sequence_kernel(first, second, bandwidths, weights), weighted)
        transposed = sequence_kernel(second, first, bandwidths, None, weights)
        torch.testing.assert_close(transposed, weighted.transpose(1, 2))


def test_a_kernel_depends_on_differences_of_features_even_if_these_are_far_from_zero():
    points = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    bandwidths, shift = torch.tensor([1.0]), torch.tensor([3000.0, -3000.0])[:, None, None, None]
    points = points + shift - shift  # the digits that remain with the shift
    shifted = sequence_kernel(points + shift, points + shift, bandwidths)
    torch.testing.assert_close(shifted, sequence_kernel(points, points, bandwidths), rtol=1e-4, atol=1e-6)
    same = points[:, :, :1] + shift
    assert sequence_kernel(same, same, bandwidths).amax() <= 1


def test_a_mixture_of_bandwidths_is_the_mean_of_their_kernels():
    distances = torch.tensor([0.0, 2.0])
    torch.testing.assert_close(gaussian_kernel(distances, torch.tensor([1.0])), torch.tensor([1.0, 0.36787944]))
    both = gaussian_kernel(distances, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(both, torch.tensor([1.0, (0.36787944 + 0.77880078) / 2]))


def test_the_median_excludes_pairs_of_equal_points():
    points = torch.tensor([[0.0], [0.0], [0.0], [0.0], [3.0], [3.0]])
    assert float(median_distance(points)) == 3
    assert float(median_distance(torch.zeros(3, 2))) == 1


@pytest.mark.parametrize(
    ("num", "settings", "message"),
    [
        (2, {}, "leave-one-out needs 3 or more samples of a state; got 2"),
        (2, {"advantage": "groups"}, "got 2 samples in groups of 2"),
        (4, {"advantage": "groups", "group_size": 1}, "got 4 samples in groups of 1"),
        (5, {"advantage": "groups"}, "got 5 samples in groups of 2"),
    ],
)
def test_advantages_without_a_baseline_are_refused(num, settings, message):
    with pytest.raises(UsageError, match=message):
        mmd_advantages(torch.ones(1, num, num), torch.ones(1, num, 1), **settings)


def test_an_unknown_advantage_is_refused(unchecked):
    with pytest.raises(UsageError, match="an advantage is one of groups, leave-one-out; got 'batch'"):
        mmd_advantages(torch.ones(1, 4, 4), torch.ones(1, 4, 1), advantage="batch")
