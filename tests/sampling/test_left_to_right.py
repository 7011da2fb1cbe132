"""Sampling with the key-value cache gives the same samples as without, for prompts of several lengths."""

import pytest
import torch

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.sampling.autoregressive import LeftToRight
from didi.sampling.base import time_grid
from didi.sampling.token_distribution import TokenDistribution

VOCAB, LENGTH = 11, 12
KINDS = {"with mask": {"mask_id": VOCAB - 1}, "as GPT-2": {"mask_id": None, "begin_id": 3, "is_tied": True}}
NUM_GIVEN = (0, 5, 1, LENGTH, 11, 5)
"""Number of given tokens of each sequence of a batch."""


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def network(request):
    """A network far from uniform, so that each token depends on the tokens before it."""
    torch.manual_seed(3)
    shape = {"vocab_size": VOCAB, "length": LENGTH, "hidden_size": 8, "num_blocks": 2, "num_heads": 2}
    network = AutoregressiveLM(AutoregressiveConfig(**shape, **request.param)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return network


def batch(num_given=NUM_GIVEN):
    """A canvas whose rows have the given numbers of prompt tokens."""
    tokens = torch.randint(0, VOCAB - 1, (len(num_given), LENGTH), generator=torch.Generator().manual_seed(0))
    return Canvas.given(tokens, torch.arange(LENGTH) >= torch.tensor(num_given)[:, None])


def noise(seed=5, size=6):
    return SequenceNoise(seed, range(size))


def sampled(network, canvas, draws, **settings):
    z = canvas.tokens
    for step in LeftToRight(network, **settings)(canvas, time_grid(1), draws):
        z = step.z
    return z


@torch.inference_mode()
def sampled_without_cache(network, canvas, draws, token_distribution=None):
    """Each token from one pass over all tokens before it."""
    z = canvas.tokens.clone()
    uniforms, token_distribution = draws.uniforms(LENGTH), token_distribution or TokenDistribution()
    for row, is_free in enumerate(canvas.is_free):
        for number, position in enumerate(is_free.nonzero().flatten().tolist()):
            logits = network(network.inputs_of(z[row : row + 1, : position + 1]))[:, -1]
            uniform = uniforms[row : row + 1, number]
            z[row, position] = token_distribution.sample(logits, network.mask_id, uniform)[0]
    return z


@pytest.mark.parametrize(
    "token_distribution",
    [TokenDistribution(), TokenDistribution(temperature=0.7), TokenDistribution(top_p=0.8)],
    ids=str,
)
def test_samples_equal_those_without_a_cache(network, token_distribution):
    canvas = batch()
    with_cache = sampled(network, canvas, noise(), token_distribution=token_distribution)
    assert torch.equal(with_cache, sampled_without_cache(network, canvas, noise(), token_distribution))
    assert torch.equal(with_cache[~canvas.is_free], canvas.tokens[~canvas.is_free])
    assert not torch.equal(with_cache, sampled(network, canvas, noise(seed=6), token_distribution=token_distribution))


def test_prompts_are_read_in_one_pass(network):
    canvas = batch((4, 9, 4, 6, 5, 7))
    assert torch.equal(sampled(network, canvas, noise()), sampled_without_cache(network, canvas, noise()))


@pytest.fixture
def passes(monkeypatch):
    """Tokens that each pass reads, and tokens that the cache holds after it."""
    sizes, features = [], AutoregressiveLM.features

    def recorded(self, tokens, cache=None):
        result = features(self, tokens, cache)
        sizes.append((tokens.shape[1], cache.get_seq_length()))
        return result

    monkeypatch.setattr(AutoregressiveLM, "features", recorded)
    return sizes


@pytest.mark.parametrize("num_given", [(0, 0), (4, 9), (LENGTH - 1,), (LENGTH, LENGTH)])
def test_every_token_is_read_once_and_the_cache_stays_within_the_context(network, passes, num_given):
    sampled(network, batch(num_given), noise(size=len(num_given)))
    least = min(num_given)
    # First the begin symbol and the given tokens, then one token per pass; the last token is not read.
    assert passes == [(least + 1, least + 1), *((1, size) for size in range(least + 2, LENGTH + 1))][: LENGTH - least]


def test_only_the_last_position_of_a_prompt_has_logits(network, monkeypatch):
    rows, head = [], AutoregressiveLM.head
    monkeypatch.setattr(AutoregressiveLM, "head", lambda self, x: rows.append(x.shape[:-1]) or head(self, x))
    sampled(network, batch((7, 9)), noise(size=2))
    assert rows == [(2,)] * 5


def test_positions_that_are_not_sampled_yet_have_the_unwritten_symbol(network):
    canvas = batch()
    states = [step.z for step in LeftToRight(network, unwritten_id=VOCAB)(canvas, time_grid(1), noise())]
    for number, z in enumerate(states, start=1):
        assert torch.equal(z == VOCAB, canvas.is_free & (torch.arange(LENGTH) >= number))
