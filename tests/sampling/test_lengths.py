"""Samples of several lengths in one set equal the samples of each length alone."""

import pytest
import torch

from didi.data.protein import protein_tokenizer
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.guidance import Guidance
from didi.models.proteins import MASK_ID
from didi.sampling.generate import generate
from didi.sampling.prompt import Frame, framed
from didi.sampling.stream import stream

LENGTHS = [3, 9, 6]


@pytest.fixture(scope="module")
def bundle(randomise, make_discriminator):
    shape = Esm2Config(hidden_size=16, num_blocks=2, num_heads=2, length=12, inner_size=24)
    teacher = randomise(Esm2(shape), seed=5, scale=1.5)
    discriminator = make_discriminator(teacher, output="sequence")
    return Bundle(teacher=teacher, discriminator=discriminator, tokenizer=protein_tokenizer())


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ancestral", "reparam", "guided", "tilted", "first-hitting", "published"])
def test_samples_of_several_lengths_equal_those_of_one_length(bundle, sampler):
    options = {"num_samples": 7, "nfe": 3, "seed": 2, "sampler": sampler}
    if sampler == "tilted":
        sampler = "guided"
        options |= {"sampler": sampler, "guidance": Guidance(tilted_fraction=1.0)}
    together = generate(bundle, length=LENGTHS, **options)
    assert (together.lengths - 2).tolist() == [3, 9, 6, 3, 9, 6, 3]
    assert together.sampler == sampler
    for length in LENGTHS:
        alone = generate(bundle, length=length, **options)
        for row in range(7):
            if together.lengths[row] == length + 2:
                assert together.texts[row] == alone.texts[row]
                assert torch.equal(together.tokens[row, : length + 2], alone.tokens[row])
                assert (together.tokens[row, length + 2 :] == 1).all()
                assert together.network_passes[row] == alone.network_passes[row] or sampler == "first-hitting"
    in_parts = generate(bundle, length=LENGTHS, batch_size=2, **options)
    assert in_parts.texts == together.texts
    assert torch.equal(in_parts.tokens, together.tokens)


def test_samples_are_residues_between_a_begin_and_an_end_symbol(bundle):
    drawn = generate(bundle, num_samples=40, nfe=2, length=LENGTHS)
    for text, row, length in zip(drawn.texts, drawn.tokens, drawn.lengths, strict=True):
        assert row[0] == 0
        assert row[length - 1] == 2
        assert len(text) == length - 2
        assert set(text) <= set("LAGVSERTIDPKQNFYMHWCBUZO")


def test_the_texts_of_a_move_have_masks_and_their_own_lengths(bundle):
    first, *_ = stream(bundle, num_samples=2, nfe=8, length=[3, 9])
    assert [text.replace("[MASK]", "-") for text in first.texts][1].count("-") > 0
    assert [len(text.replace("[MASK]", "-")) for text in first.texts] == [3, 9]


def test_given_residues_follow_the_begin_symbol(bundle):
    drawn = generate(bundle, num_samples=3, nfe=2, length=[6, 9], infill="MK[MASK]V")
    assert all(text[:2] + text[3] == "MKV" for text in drawn.texts)
    assert [len(text) for text in drawn.texts] == [6, 9, 6]
    both = generate(bundle, nfe=2, length=[6, 9], num_samples=2, prompts=["MK", "A[MASK]C"], seed=1)
    second = generate(bundle, nfe=2, length=[6, 9], num_samples=2, prompts=["A[MASK]C"], seed=1)
    assert both.texts[2:] == second.texts
    assert [len(text) for text in both.texts] == [6, 9, 6, 9]


def test_begin_and_end_count_towards_the_context_length(bundle):
    assert len(generate(bundle, num_samples=1, nfe=1).texts[0]) == 10
    for length, message in ((11, r"length lies in \[1, 10\]; got 11"), ([], "length is one value or more")):
        with pytest.raises(UsageError, match=message):
            generate(bundle, length=length)


def test_a_frame_is_given_and_padding_is_not_real():
    canvas = framed(Canvas.blank(2, 3), Frame((7,), (8, 9), pad_id=5), 8)
    assert canvas.tokens.tolist() == [[7, 0, 0, 0, 8, 9, 5, 5]] * 2
    assert canvas.is_free[0].tolist() == [False, True, True, True, False, False, False, False]
    assert canvas.is_real[0].tolist() == [True] * 6 + [False] * 2
    assert canvas.lengths == [6, 6]


def test_networks_without_a_frame_sample_several_lengths(make_dit):
    network = make_dit(vocab_size=8, length=9)
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=8, mask_id=7, length=9, hidden_size=8, num_blocks=1, num_heads=2)
    bundle = Bundle(teacher=network, autoregressive=AutoregressiveLM(shape).eval(), process=Absorbing(7))
    for role in ("teacher", "autoregressive"):
        together = generate(bundle, num_samples=4, nfe=3, length=[4, 9], role=role)
        assert together.lengths.tolist() == [4, 9, 4, 9]
        for length, rows in ((4, [0, 2]), (9, [1, 3])):
            alone = generate(bundle, num_samples=4, nfe=3, length=length, role=role)
            assert torch.equal(together.tokens[rows, :length], alone.tokens[rows])
            assert [together.texts[row] for row in rows] == [alone.texts[row] for row in rows]


def test_the_prior_masks_residues_only(bundle):
    canvas = framed(Canvas.blank(1, 3), Frame.of(bundle.teacher), 7)
    assert bundle.process.prior(canvas).tolist() == [[0, MASK_ID, MASK_ID, MASK_ID, 2, 1, 1]]
