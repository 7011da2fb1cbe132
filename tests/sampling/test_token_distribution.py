"""Temperature and top-p of the distribution from which samplers draw tokens."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.errors import UsageError
from didi.sampling.ancestral import Ancestral
from didi.sampling.published import Published
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 9.0], [3.0, 0.0, 0.0, 9.0]])
MASK = 3


def test_the_default_is_the_distribution_of_the_network_without_the_mask():
    torch.testing.assert_close(UNMODIFIED.log_probs(LOGITS, MASK)[:, :3].exp(), LOGITS[:, :3].softmax(-1))
    assert (UNMODIFIED.log_probs(LOGITS, MASK)[:, MASK] == -torch.inf).all()


def test_temperature_divides_the_logits():
    actual = TokenDistribution(temperature=0.5).log_probs(LOGITS, MASK)[:, :3].exp()
    torch.testing.assert_close(actual, (2 * LOGITS[:, :3]).softmax(-1))


@pytest.mark.parametrize(("top_p", "kept"), [(0.6, [[2], [0]]), (0.7, [[1, 2], [0]]), (0.95, [[0, 1, 2], [0, 1]])])
def test_top_p_keeps_the_fewest_likely_tokens_that_reach_the_share(top_p, kept):
    # The rows are (0.090, 0.245, 0.665) and (0.909, 0.045, 0.045).
    actual = TokenDistribution(top_p=top_p).log_probs(LOGITS, MASK).exp()
    for row, probs, tokens in zip(actual, LOGITS[:, :3].softmax(-1), kept, strict=True):
        expected = torch.zeros(4)
        expected[tokens] = probs[tokens] / probs[tokens].sum()
        torch.testing.assert_close(row, expected)


def test_the_most_probable_token_is_always_kept():
    actual = TokenDistribution(top_p=1e-9).log_probs(LOGITS, MASK)
    assert (actual > -torch.inf).sum(-1).tolist() == [1, 1]


def test_samplers_draw_from_the_modified_distribution(enumerated, tabular, draw, chi_square):
    log_linear = Absorbing(3)
    token_distribution = TokenDistribution(temperature=0.8, top_p=0.7)
    modified = token_distribution.log_probs(enumerated.table.flatten(0, 1), enumerated.MASK).view_as(enumerated.table)
    for sampler in (Ancestral, Published):
        _, drawn = draw(sampler(tabular(enumerated.table), log_linear, token_distribution), num=3000, nfe=2)
        assert chi_square(drawn, enumerated.sample_probs([modified] * 2, log_linear)) > 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, r"temperature lies in \[0, 1e\+30\]; got -1.0"),
        ({"temperature": 1e31}, r"temperature lies in \[0, 1e\+30\]; got 1e\+31"),
        ({"temperature": float("nan")}, r"temperature lies in \[0, 1e\+30\]; got nan"),
        ({"top_p": 0.0}, r"top_p lies in \(0, 1\]; got 0.0"),
        ({"top_p": 1.5}, "top_p lies in"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        TokenDistribution(**values)


@pytest.mark.parametrize("temperature", [0.0, -0.0, 1e-40, 1e-30])
def test_temperature_0_takes_the_most_likely_token(temperature):
    logits = torch.tensor([[1.0, 1.5, -2.0], [3.0, 2.999, 0.0]])
    for top_p in (1.0, 0.5):
        token_distribution = TokenDistribution(temperature, top_p)
        assert token_distribution == TokenDistribution(1e-30, top_p)
        drawn = token_distribution.sample(logits, None, torch.tensor([[0.0, 0.999], [0.0, 0.999]], dtype=torch.float64))
        assert drawn.tolist() == [[1, 1], [0, 0]]
