"""Ratio of perplexities at equal entropy, with its bootstrap interval."""

import math
import statistics

import pytest
import torch

from didi.errors import UsageError
from didi.evaluation.equal_entropy import per_sequence, ratio_at_equal_entropy
from didi.evaluation.perplexity import Scores


def sequences(log_perplexity, entropy, *, n=200, spread=0.2, seed=0):
    """Columns of sequences of 10 to 20 tokens, with the given expected log-perplexity and mean entropy."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = torch.randint(10, 21, (n,), generator=generator)
    noise = torch.randn(2, n, generator=generator, dtype=torch.float64) * spread
    return per_sequence(Scores(num_tokens * (log_perplexity + noise[0]), num_tokens), entropy + 0.1 * noise[1])


def test_the_sweep_is_interpolated_at_the_entropy_of_the_samples_in_any_order():
    exact = {"n": 3, "spread": 0.0}
    samples, low, high = sequences(5.0, 4.25, **exact), sequences(4.0, 4.0, **exact), sequences(6.0, 5.0, **exact)
    expected = math.exp(5.0 - 4.5)  # a quarter of the way from 4 to 6
    for sweep in ([low, high], [high, low]):
        ratio, interval = ratio_at_equal_entropy(samples, sweep, num_resamples=20)
        assert ratio == pytest.approx(expected)
        assert interval == pytest.approx((expected, expected))


@pytest.mark.slow
def test_the_interval_covers_the_ratio_with_its_level():
    num_covered, ratios, widths = 0, [], []
    for trial in range(60):
        sets = [sequences(*at, seed=3 * trial + i) for i, at in enumerate([(5.0, 4.5), (4.0, 4.0), (6.0, 5.0)])]
        ratio, (low, high) = ratio_at_equal_entropy(sets[0], sets[1:], num_resamples=200, seed=trial)
        num_covered += low <= 1 <= high
        ratios.append(ratio)
        widths.append(high - low)
    assert num_covered >= 51  # 57 of 60 are expected
    assert statistics.fmean(widths) == pytest.approx(2 * 1.96 * statistics.stdev(ratios), rel=0.25)


def test_sets_are_resampled_independently():
    samples = sequences(5.0, 4.5)
    _, (low, high) = ratio_at_equal_entropy(
        samples, [samples + torch.tensor([0, 0, d]) for d in (-0.5, 0.5)], num_resamples=200
    )
    assert high - low > 0.04  # the same rows in all sets would cancel


def test_an_entropy_outside_the_sweep_has_no_ratio():
    ratio, interval = ratio_at_equal_entropy(
        sequences(5.0, 3.0), [sequences(4.0, 4.0), sequences(6.0, 5.0)], num_resamples=20
    )
    assert math.isnan(ratio)
    assert all(map(math.isnan, interval))


def test_a_sweep_of_one_temperature_is_refused():
    with pytest.raises(UsageError, match="two temperatures or more; got 1"):
        ratio_at_equal_entropy(sequences(5.0, 4.5), [sequences(4.0, 4.0)])
