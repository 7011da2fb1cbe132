"""``stream`` yields moves lazily, and ``generate`` collects them."""

import itertools

import pytest
import torch

import didi
from didi.data.source import MarkovSource
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.sampling.prompt import canvas_from_prompt

LENGTH, MASK = 8, 32
SAMPLERS = ["ancestral", "guided", "first-hitting", "tau-leaping", "confidence", "entropy-bounded", "remasking"]


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    network = make_dit(vocab_size=33, length=LENGTH, seed=2)
    tokenizer = MarkovSource(LENGTH, 0).tokenizer
    return Bundle(student=network, discriminator=make_discriminator(network), tokenizer=tokenizer, name="mine")


@pytest.fixture
def passes(bundle):
    """Rows of every pass of the network so far."""
    rows = []
    handle = bundle.student.vocab_embed.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    yield rows
    handle.remove()


@pytest.mark.parametrize("sampler", ["ancestral", "guided", "confidence", "first-hitting"])
def test_the_network_runs_only_for_moves_that_are_requested(bundle, passes, sampler):
    moves = didi.stream(bundle, num_samples=4, nfe=6, sampler=sampler)
    assert not passes
    before = 0
    for number, move in enumerate(itertools.islice(moves, 4), start=1):
        assert move.number == number
        assert len(passes) - before <= 1
        before = len(passes)
    assert before >= 3
    list(moves)
    assert len(passes) > before


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*SAMPLERS, "published"])
def test_generate_collects_the_last_move_of_each_batch(bundle, sampler):
    arguments = {"num_samples": 7, "nfe": 5, "seed": 4, "batch_size": 3, "sampler": sampler}
    moves = list(didi.stream(bundle, **arguments))
    drawn = didi.generate(bundle, **arguments)
    last = {move.indices: move for move in moves}
    assert list(last) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert torch.equal(torch.cat([move.tokens for move in last.values()]), drawn.tokens)
    assert torch.equal(torch.cat([move.network_passes for move in last.values()]), drawn.network_passes)
    assert torch.equal(torch.cat([move.discriminator_passes for move in last.values()]), drawn.discriminator_passes)
    assert [text for move in last.values() for text in move.texts] == drawn.texts
    for indices, batch_moves in itertools.groupby(moves, lambda move: move.indices):
        z = torch.full((len(indices), LENGTH), MASK)
        for number, move in enumerate(batch_moves, start=1):
            assert move.number == number
            assert torch.equal(move.is_changed, move.tokens != z)
            z = move.tokens
        assert move.t == 0 or sampler == "first-hitting"  # its last move has a drawn time
        assert (z != MASK).all()


def test_later_moves_do_not_change_earlier_ones(bundle):
    moves = list(didi.stream(bundle, num_samples=2, nfe=4))
    again = [move.tokens.clone() for move in didi.stream(bundle, num_samples=2, nfe=4)]
    assert all(torch.equal(move.tokens, tokens) for move, tokens in zip(moves, again, strict=True))
    masks = [int((move.tokens == MASK).sum()) for move in moves]
    assert masks == sorted(masks, reverse=True)
    assert masks[0] > masks[-1] == 0
    assert moves[0].texts[0].count("[MASK]") == int((moves[0].tokens[0] == MASK).sum())


@pytest.mark.parametrize("sampler", [*SAMPLERS, "published"])
def test_a_prompt_without_free_positions_is_returned_unchanged(bundle, passes, sampler):
    prefix = "s3 s1 s4 s1 s5 s9 s2 s6"
    moves = list(didi.stream(bundle, num_samples=3, nfe=4, batch_size=2, prefix=prefix, sampler=sampler))
    assert {move.indices for move in moves} == {(0, 1), (2,)}
    for move in moves:
        assert move.texts == [prefix] * len(move.indices)
        assert not move.is_changed.any()
        assert not move.network_passes.any()
        assert not move.discriminator_passes.any()
    assert not passes or sampler == "published"  # the published sampler runs the network in every move
    assert didi.generate(bundle, num_samples=3, nfe=4, prefix=prefix, sampler=sampler).texts == [prefix] * 3


@pytest.mark.parametrize("sampler", [*SAMPLERS, "published"])
def test_every_move_keeps_the_prompt(bundle, sampler):
    infill = "s3 [MASK] s4 [MASK] s5"
    canvas = canvas_from_prompt(bundle, LENGTH, infill=infill)
    assert canvas.is_free.tolist() == [[False, True, False, True, False, True, True, True]]
    assert canvas.tokens[~canvas.is_free].tolist() == [3, 4, 5]
    for move in didi.stream(bundle, num_samples=4, nfe=4, infill=infill, sampler=sampler):
        is_given = ~canvas.is_free.expand(4, -1)
        assert torch.equal(move.tokens[is_given], canvas.tokens.expand(4, -1)[is_given])
        assert not move.is_changed[is_given].any()
    assert (move.tokens != MASK).all()


def test_a_canvas_without_prompt_is_free_and_wrong_prompts_are_refused(bundle):
    assert canvas_from_prompt(bundle, 5).is_free.tolist() == [[True] * 5]
    for prompt, message in (
        ({"prefix": "s1", "infill": "[MASK]"}, "not both"),
        ({"prefix": "s1 [MASK]"}, r"a prefix has no \[MASK\]; got 's1 \[MASK\]': use infill"),
        ({"infill": "s1"}, r"an infill text has .*; got 's1'"),
        ({"prefix": "s1 s2 s3 s4 s5 s6"}, "at most 5 tokens here; this one has 6"),
    ):
        with pytest.raises(UsageError, match=message):
            canvas_from_prompt(bundle, 5, **prompt)


@pytest.mark.parametrize("times", [(1.0, 1e-17, 0.0), (1.0, 0.5, 5e-324, 0.0), (1.0, 0.5, 0.5 - 1e-17, 0.0)])
@pytest.mark.parametrize("sampler", ["ancestral", "remasking", "tau-leaping"])
def test_times_with_equal_signal_rates_are_refused(bundle, times, sampler):
    with pytest.raises(UsageError, match=r"are equal in float64: leave one|times fall from 1 to 0"):
        didi.stream(bundle, times=times, sampler=sampler)


@pytest.mark.parametrize("sampler", ["ancestral", "guided", "tau-leaping", "confidence", "remasking", "published"])
def test_close_times_are_sampled_if_their_signal_rates_differ(bundle, sampler):
    for times in ((1.0, 2e-16, 0.0), (1.0, 1 - 2e-16, 0.0), (1.0, 0.5, 0.5 - 1e-16, 0.0)):
        *_, last = didi.stream(bundle, num_samples=3, times=times, sampler=sampler)
        assert (last.tokens != MASK).all()


@pytest.mark.parametrize("wrong", [{"nfe": 0}, {"sampler": "euler"}, {"length": 99}, {"temprature": 1.0}])
def test_invalid_arguments_are_refused_before_the_first_move(bundle, wrong):
    with pytest.raises(UsageError):
        didi.stream(bundle, **wrong)  # no move is requested
