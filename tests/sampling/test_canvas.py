"""Every sampler leaves given tokens and padding unchanged, and padding does not change samples."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.diffusion.score import ScoreUniform
from didi.diffusion.uniform import Uniform
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import time_grid
from didi.sampling.confidence import ConfidenceDecoding, ConfidenceOrder
from didi.sampling.entropy_bounded import EntropyBounded
from didi.sampling.first_hitting import FirstHitting
from didi.sampling.guided import Guidance, Guided
from didi.sampling.published import Published
from didi.sampling.remasking import Remasking, RemaskingSampler
from didi.sampling.reparameterized import Reparameterized
from didi.sampling.score import ScoreSampler
from didi.sampling.uniform_ancestral import UniformAncestral
from didi.sampling.uniform_guided import UniformGuided

LENGTH, MASK, NUM = 8, 6, 5
PROCESS = Absorbing(MASK)
SAMPLERS = {
    "ancestral": lambda network, _: Ancestral(network, PROCESS),
    "whole batches": lambda network, _: Ancestral(network, PROCESS, is_whole_batch=True),
    "tau-leaping": lambda network, _: Ancestral(network, PROCESS, leap="tau"),
    "tilted": lambda network, discriminator: Guided(network, PROCESS, discriminator, Guidance(tilted_fraction=1.0)),
    "ranked": lambda network, discriminator: Guided(
        network, PROCESS, discriminator, Guidance(tilted_fraction=0.0, reduction="masked-mean")
    ),
    "first-hitting": lambda network, _: FirstHitting(network, PROCESS),
    "confidence": lambda network, _: ConfidenceDecoding(network, PROCESS, ConfidenceOrder(gumbel=1.0)),
    "entropy-bounded": lambda network, _: EntropyBounded(network, PROCESS, entropy_bound=1.0),
    "remasking": lambda network, _: RemaskingSampler(network, PROCESS, Remasking("rescale", 1.0)),
    "published": lambda network, _: Published(network, PROCESS),
    "reparam": lambda network, _: Reparameterized(network, PROCESS),
}
UNIFORM, SCORE = Uniform(NUM), ScoreUniform(NUM, schedule_from_name("log-linear-eps"))
UNIFORM_SAMPLERS = {
    "ancestral": lambda network, _: UniformAncestral(network, UNIFORM),
    "corrector": lambda network, _: UniformAncestral(network, UNIFORM, remask=Remasking("rescale", 0.5)),
    "tilted": lambda network, discriminator: UniformGuided(
        network, UNIFORM, discriminator, Guidance(tilted_fraction=1.0)
    ),
    "ranked": lambda network, discriminator: UniformGuided(
        network, UNIFORM, discriminator, Guidance(tilted_fraction=0.0)
    ),
    "score": lambda network, _: ScoreSampler(network, SCORE),
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "time-conditioned"])
def network(request, make_dit):
    return make_dit(vocab_size=7, length=LENGTH, seed=2, conv_radius=1, is_time_conditioned=request.param)


@pytest.fixture(params=SAMPLERS)
def sampler(request, network, make_discriminator):
    return SAMPLERS[request.param](network, make_discriminator(network, seed=1))


def moves_of(sampler, canvas, indices):
    lengths = canvas.is_real.sum(1).tolist() if canvas.has_padding else None
    return list(sampler(canvas, time_grid(5), SequenceNoise(3, indices, lengths=lengths)))


def test_given_tokens_and_padding_are_never_written_even_if_they_are_masks(sampler):
    tokens = torch.randint(7, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens[:, 1], tokens[:, 6:] = MASK, MASK
    is_free = torch.rand(6, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6
    is_free[:, 1], is_free[:, 6:], is_free[0] = False, False, False
    is_real = torch.ones_like(is_free)
    is_real[3:, 6:] = False
    canvas = Canvas(tokens, is_free, is_real, has_padding=True)
    moves = moves_of(sampler, canvas, range(6))
    for move in moves:
        assert torch.equal(move.z[~is_free], tokens[~is_free])
        assert not move.is_changed[~is_free].any()
        assert move.network_passes[0] == move.discriminator_passes[0] == 0
    assert (moves[-1].z[is_free] != MASK).all()
    assert (moves[-1].z[is_free] != tokens[is_free]).any()


def test_a_move_does_not_change_the_states_of_earlier_moves(sampler):
    moves = [
        (move.z, move.z.clone()) for move in sampler(Canvas.blank(2, LENGTH), time_grid(5), SequenceNoise(3, [0, 1]))
    ]
    assert all(torch.equal(z, copy) for z, copy in moves)


def assert_padding_changes_no_sample(sampler, pads):
    lengths = [5, LENGTH, 2, 7]
    for pad in pads:
        canvas = Canvas.padded(torch.full((4, LENGTH), pad), torch.tensor(lengths))
        together = moves_of(sampler, canvas, range(4))
        assert not together[-1].is_changed[~canvas.is_real].any()
        for row, length in enumerate(lengths):
            alone = moves_of(sampler, Canvas.blank(1, length), [row])
            assert torch.equal(together[-1].z[row, :length], alone[-1].z[0])
            for name in ("network_passes", "discriminator_passes"):
                passes = [sum(getattr(move, name)[i] for move in moves) for moves, i in ((together, row), (alone, 0))]
                assert passes[0] == passes[1]


@pytest.mark.slow
def test_a_padded_batch_is_sampled_as_its_sequences_alone(sampler):
    assert_padding_changes_no_sample(sampler, (MASK, 0))


@pytest.mark.parametrize("name", UNIFORM_SAMPLERS)
def test_a_padded_batch_of_uniform_state_diffusion_is_sampled_as_its_sequences_alone(
    name, make_dit, make_discriminator
):
    network = make_dit(vocab_size=NUM, length=LENGTH, seed=2, mask_id=None, is_time_conditioned=True)
    assert_padding_changes_no_sample(UNIFORM_SAMPLERS[name](network, make_discriminator(network, seed=1)), (NUM - 1, 0))


def test_a_row_without_free_positions_does_not_change(sampler):
    canvas = Canvas.padded(torch.full((2, LENGTH), MASK), torch.tensor([LENGTH, 4]))
    canvas = Canvas(canvas.tokens, canvas.is_free & torch.tensor([[True], [False]]), canvas.is_real, has_padding=True)
    last = moves_of(sampler, canvas, [0, 1])[-1]
    assert (last.z[1] == MASK).all()
    assert (last.z[0] != MASK).all()


def test_the_methods_of_a_canvas_keep_its_three_parts_together():
    tokens = torch.arange(6).view(2, 3)
    canvas = Canvas.padded(tokens, torch.tensor([3, 2]))
    assert canvas.is_real.tolist() == canvas.is_free.tolist() == [[True] * 3, [True, True, False]]
    assert torch.equal(canvas.attention_mask, canvas.is_real)
    assert Canvas.padded(tokens, torch.tensor([3, 3])).attention_mask is None
    assert (len(canvas), canvas.length) == (2, 3)
    second, twice = canvas.rows(torch.tensor([1])), canvas.repeat_interleave(2)
    for name in ("tokens", "is_free", "is_real"):
        part = getattr(canvas, name)
        assert torch.equal(getattr(second, name), part[1:])
        assert torch.equal(getattr(twice, name), part[[0, 0, 1, 1]])
        assert torch.equal(getattr(second.expand(3), name), part[[1, 1, 1]])
    assert second.has_padding
    assert twice.has_padding
    assert canvas.clamped(torch.full((2, 3), 9)).tolist() == [[9, 9, 9], [9, 9, 5]]
    assert canvas.num_free.tolist() == [3, 2]
    trimmed = Canvas.padded(tokens, torch.tensor([2, 1])).trimmed()
    assert (trimmed.length, trimmed.has_padding, trimmed.lengths) == (2, True, [2, 1])
    trimmed = Canvas.padded(tokens, torch.tensor([2, 2])).trimmed()
    assert (trimmed.length, trimmed.has_padding, trimmed.lengths) == (2, False, None)
    joined = canvas.concatenated(Canvas.padded(torch.full((1, 2), 7), torch.tensor([2])))
    assert joined.tokens.tolist() == [[0, 1, 2], [3, 4, 5], [7, 7, 0]]
    assert joined.is_real.tolist() == joined.is_free.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert joined.has_padding
    torch.testing.assert_close(canvas.mean(tokens.double()), torch.tensor([1.0, 3.5], dtype=torch.float64))
