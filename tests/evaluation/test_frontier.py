"""Bootstrap intervals of means and perplexities, and perplexity at equal entropy."""

import math

import pytest
import torch

from didi.evaluation import frontier
from didi.evaluation.frontier import (
    bootstrap_interval,
    frontier_ratio,
    mean_interval,
    perplexity_at_entropy,
    perplexity_interval,
)
from didi.evaluation.perplexity import Scores, perplexity

NUM_TRIALS = 200


def coverage(intervals, expected):
    return sum(low <= expected <= high for low, high in intervals) / len(intervals)


@pytest.mark.slow
def test_mean_interval_covers_the_mean_of_a_normal_distribution_at_its_level():
    data = torch.randn(NUM_TRIALS, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    intervals = [mean_interval(values, seed=trial) for trial, values in enumerate(data)]
    assert coverage(intervals, 3.0) == pytest.approx(0.95, abs=0.035)
    widths = torch.tensor([high - low for low, high in intervals])
    assert float(widths.mean()) == pytest.approx(2 * 1.96 / 60**0.5, rel=0.05)


@pytest.mark.slow
def test_perplexity_interval_covers_the_ratio_of_expectations():
    generator = torch.Generator().manual_seed(1)
    num_tokens = torch.randint(20, 60, (NUM_TRIALS, 80), generator=generator)
    rates = 2 + 0.4 * torch.randn(NUM_TRIALS, 80, generator=generator, dtype=torch.float64)
    intervals = [
        perplexity_interval(Scores(rate * num, num), seed=trial)
        for trial, (rate, num) in enumerate(zip(rates, num_tokens, strict=True))
    ]
    assert coverage(intervals, float(torch.tensor(2.0).exp())) == pytest.approx(0.95, abs=0.035)


def test_vectorised_resamples_equal_a_plain_loop_over_the_same_draws():
    values = torch.rand(9, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    draws = torch.randint(9, (50, 9), generator=torch.Generator().manual_seed(4))
    plain = torch.stack([values[draw, 0].sum() / values[draw, 1].sum() for draw in draws])
    interval = bootstrap_interval(
        values, lambda totals: totals[:, 0] / totals[:, 1], num_resamples=50, seed=4, level=0.9
    )
    assert interval == pytest.approx(plain.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist())


def test_the_split_into_chunks_changes_nothing(monkeypatch):
    values = torch.rand(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = mean_interval(values)
    monkeypatch.setattr(frontier, "CHUNK_ELEMENTS", 30 * 7)
    assert mean_interval(values) == pytest.approx(whole)


def test_intervals_are_reproducible_and_widen_with_the_level():
    values = torch.rand(40, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)
    (low, high), (lower, higher) = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert lower < low < high < higher


def test_the_interval_is_finite_if_most_texts_are_empty():
    scores = Scores(torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64), torch.tensor([0, 0, 2]))
    assert perplexity_interval(scores) == pytest.approx((perplexity(scores), perplexity(scores)))


def test_the_interval_of_one_sequence_is_its_value():
    low, high = mean_interval(torch.tensor([2.5], dtype=torch.float64))
    assert low == high == 2.5


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_outside_the_unit_interval_is_refused(level):
    with pytest.raises(ValueError, match="level must lie in"):
        mean_interval(torch.ones(3, dtype=torch.float64), level=level)


def test_no_sequences_are_refused():
    with pytest.raises(ValueError, match="at least one sequence"):
        mean_interval(torch.ones(0, dtype=torch.float64))


def test_a_sweep_is_interpolated_between_its_points_and_nan_beyond_them():
    sweep = [(4.0, 100.0), (3.0, 10.0), (5.0, 400.0)]
    assert perplexity_at_entropy(sweep, 3.5) == pytest.approx(math.sqrt(1000))
    assert perplexity_at_entropy(sweep, 4.5) == pytest.approx(200)
    assert perplexity_at_entropy(sweep, 3.0) == pytest.approx(10)
    assert perplexity_at_entropy([(4.0, 10.0), (4.0, 1000.0)], 4.0) == pytest.approx(100)
    for outside in (2.99, 5.01):
        assert math.isnan(perplexity_at_entropy(sweep, outside))


def test_the_ratio_of_two_frontiers_is_the_area_between_them():
    base = [(4.0, 100.0), (5.0, 1000.0)]
    assert frontier_ratio(base, base) == (1, (4, 5))
    half = [(entropy, ppl / 2) for entropy, ppl in base]
    assert frontier_ratio(half, base)[0] == pytest.approx(0.5)
    # A log-gap that falls from 0 to -2 over the first half of the shared range and stays there: -1.5 on average.
    bent = [(4.0, 100.0), (4.5, math.sqrt(1e5) / math.e**2), (5.0, 1000 / math.e**2), (6.0, 1.0)]
    ratio, shared = frontier_ratio(bent, base)
    assert ratio == pytest.approx(math.exp(-1.5))
    assert shared == (4, 5)
    assert frontier_ratio(base, bent)[0] == pytest.approx(math.exp(1.5))
    assert math.isnan(frontier_ratio([(3.0, 9.0), (3.9, 10.0)], base)[0])
