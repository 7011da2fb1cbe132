"""Reparameterized decoding of DPLM against its public algorithm, written out with loops."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.sampling.base import time_grid
from didi.sampling.reparameterized import Reparameterization, Reparameterized

VOCAB, LENGTH, NUM = 6, 9, 4
MASK = VOCAB - 1
SETTINGS = [
    Reparameterization(),
    Reparameterization(gumbel=0.3, repetition=0.5, resample_top_p=0.6, rank_gumbel=3.0),
    Reparameterization(gumbel=0.0, repetition=1.0),
]


@pytest.fixture(scope="module")
def network(make_dit):
    return make_dit(vocab_size=VOCAB, length=LENGTH, seed=4, scale=2.0)


def gumbel(uniforms):
    return [[-math.log(-math.log(u)) for u in row] for row in uniforms.tolist()]


def predicted(network, z, noise, settings, top_p):
    """Tokens and scores of one sequence, at every position."""
    logits = network(z[None])[0].double()
    logits[:, MASK] = -math.inf
    log_probs = logits.log_softmax(-1)
    if top_p < 1:
        for row in log_probs:
            order = row.argsort(descending=True)
            kept = row[order].exp().cumsum(0) - row[order].exp() < top_p
            row[order[~kept]] = -math.inf
    noisy = log_probs + settings.gumbel * torch.tensor(gumbel(noise), dtype=torch.float64)
    scores, tokens = noisy.log_softmax(-1).max(-1)
    return tokens, scores


def repetitive(tokens, settings):
    counts = Counter(tokens.tolist())
    return {token for token, num in counts.items() if num > settings.repetition * len(tokens)}


@torch.no_grad()
def reference_decoding(network, index, settings, nfe):
    """One sequence as the public code decodes it, move by move, and its network passes."""
    noise = SequenceNoise(3, [index])
    z, states, passes = torch.full((LENGTH,), MASK), [], 0
    for step in range(1, nfe + 1):
        tokens, scores = predicted(network, z, noise.uniforms(LENGTH, VOCAB)[0], settings, 1.0)
        passes += 1
        rate = 1 - step / nfe
        if repeated := repetitive(tokens, settings):
            is_repeated = torch.tensor([int(token) in repeated for token in tokens])
            masked = tokens.masked_fill(is_repeated, MASK)
            passes += 1
            second = predicted(network, masked, noise.uniforms(LENGTH, VOCAB)[0], settings, settings.resample_top_p)
            tokens, scores = (torch.where(is_repeated, *pair) for pair in zip(second, (tokens, scores), strict=True))
            if repetitive(tokens, settings):
                gumbels = torch.tensor(gumbel(noise.uniforms(LENGTH))[0], dtype=torch.float64)
                scores = scores + settings.rank_gumbel * rate * gumbels
        lowest = scores.argsort()[: math.floor(LENGTH * rate + 1e-9)]
        was_masked = z == MASK
        z = torch.where(was_masked, tokens, z)
        z[lowest] = MASK
        states.append(z)
    return states, passes


@pytest.mark.parametrize("settings", SETTINGS, ids=["dplm", "other", "greedy"])
@pytest.mark.parametrize("nfe", [1, 4, 7])
def test_moves_follow_the_public_algorithm(network, settings, nfe):
    sampler = Reparameterized(network, Absorbing(MASK), settings)
    with torch.no_grad():
        moves = list(sampler(Canvas.blank(NUM, LENGTH), time_grid(nfe), SequenceNoise(3, range(NUM))))
    total = sum(move.network_passes for move in moves).tolist()
    for index in range(NUM):
        states, passes = reference_decoding(network, index, settings, nfe)
        for move, state in zip(moves, states, strict=True):
            assert torch.equal(move.z[index], state)
        assert total[index] == passes
    assert (moves[-1].z != MASK).all()
    if settings == SETTINGS[0] and nfe > 1:
        assert max(total) > nfe  # some sequences are repetitive
        remasked = [(earlier.z != MASK) & (later.z == MASK) for earlier, later in pairwise(moves)]
        assert any(bool(is_remasked.any()) for is_remasked in remasked)


def test_a_sequence_without_free_positions_needs_no_pass(network):
    canvas = Canvas.given(torch.zeros(2, LENGTH, dtype=torch.long), torch.tensor([[True], [False]]).expand(2, LENGTH))
    moves = list(Reparameterized(network, Absorbing(MASK))(canvas, time_grid(2), SequenceNoise(0, range(2))))
    assert all(move.network_passes[1] == 0 for move in moves)
    assert (moves[-1].z[1] == 0).all()


@pytest.mark.parametrize(
    "changes", [{"gumbel": -1.0}, {"repetition": 2.0}, {"resample_top_p": 0.0}, {"rank_gumbel": math.inf}]
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        Reparameterization(**changes)
