"""``generate`` with every sampler: independence of the batch size, prompts, recorded passes and refused arguments."""

import itertools
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.diffusion.schedule import schedule_from_name
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.sampling.ancestral import Ancestral
from didi.sampling.base import time_grid
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate
from didi.sampling.guided import Guidance
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import settings_text
from didi.sampling.remasking import Remasking
from didi.sampling.stream import stream

LENGTH, MASK = 8, 6
WORDS = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "[MASK]": MASK}
WITHOUT_GRID = ("first-hitting", "entropy-bounded")
OPTIONS = {
    "ancestral": {},
    "float32": {"precision": "float32"},
    "guided": {"sampler": "guided"},
    "first-hitting": {"sampler": "first-hitting"},
    "confidence": {"sampler": "confidence", "order": ConfidenceOrder(gumbel=1.0)},
    "entropy-bounded": {"sampler": "entropy-bounded", "entropy_bound": 2.0},
    "remasking": {"sampler": "remasking", "remask": Remasking("rescale", 0.5)},
    "top-p": {"top_p": 0.8},
    "best of 3": {"sampler": "guided", "guidance": Guidance(num_candidates=3, select="best", tilted_fraction=0.3)},
}


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    teacher = make_dit(vocab_size=7, length=LENGTH, seed=1)
    return Bundle(
        student=make_dit(vocab_size=7, length=LENGTH, seed=2),
        teacher=teacher,
        discriminator=make_discriminator(teacher),
        tokenizer=tokenizer,
    )


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.mark.slow
def test_the_samples_of_a_seed_do_not_depend_on_the_batches(bundle, options):
    whole = generate(bundle, num_samples=4, nfe=3, seed=5, batch_size=8, **options)
    for batch_size in (1, 3):
        split = generate(bundle, num_samples=4, nfe=3, seed=5, batch_size=batch_size, **options)
        assert torch.equal(split.tokens, whole.tokens)
        assert torch.equal(split.network_passes, whole.network_passes)
        assert torch.equal(split.discriminator_passes, whole.discriminator_passes)
    few = generate(bundle, num_samples=3, nfe=3, seed=5, **options)
    assert torch.equal(few.tokens, whole.tokens[:3])
    assert not torch.equal(generate(bundle, num_samples=4, nfe=3, seed=6, **options).tokens, whole.tokens)


@pytest.mark.parametrize("nfe", [1, 5])
@pytest.mark.parametrize("schedule", ["log-linear", "cosine", "geometric"])
def test_no_mask_is_left(bundle, options, schedule, nfe):
    with_schedule = Bundle(
        student=bundle.student,
        discriminator=bundle.discriminator,
        process=Absorbing(MASK, schedule_from_name(schedule)),
    )
    tokens = generate(with_schedule, num_samples=3, nfe=nfe, **options).tokens
    assert tokens.shape == (3, LENGTH)
    assert ((tokens >= 0) & (tokens < MASK)).all()


def test_a_result_records_its_settings(bundle):
    out = generate(bundle, num_samples=3, nfe=4, seed=9, sampler="guided")
    assert (out.nfe, out.seed, out.precision, out.sampler) == (4, 9, "float64", "guided")
    assert out.seconds > 0
    assert generate(bundle, num_samples=1, nfe=1, precision="float32").precision == "float32"


@pytest.mark.slow
def test_the_default_number_of_moves_of_a_student_is_its_intended_nfe(bundle):
    with_nfe = replace(bundle, intended_nfe=5)
    out = generate(with_nfe, num_samples=2)
    assert out.nfe == 5
    assert torch.equal(out.tokens, generate(bundle, num_samples=2, nfe=5).tokens)
    for source, role, expected in ((with_nfe, "teacher", 16), (bundle, None, 16), (with_nfe, None, 5)):
        assert generate(source, num_samples=1, role=role).nfe == expected
        assert max(move.number for move in stream(source, role=role)) == expected
    assert generate(with_nfe, num_samples=1, nfe=2).nfe == 2


def test_texts_are_the_decoded_tokens(bundle):
    out = generate(bundle, num_samples=3, nfe=2)
    letters = "abcdef"
    assert out.texts == [" ".join(letters[token] for token in row) for row in out.tokens.tolist()]
    plain = generate(Bundle(student=bundle.student), num_samples=3, nfe=2)
    assert plain.texts == [" ".join(map(str, row)) for row in out.tokens.tolist()]


def test_no_sequence_takes_more_passes_than_moves_or_positions(bundle, options):
    for nfe in (2, 12):
        out = generate(bundle, num_samples=6, nfe=nfe, **options)
        assert (out.network_passes >= 1).all()
        assert (out.network_passes <= out.nfe).all()
        assert out.nfe == (LENGTH if out.sampler in WITHOUT_GRID else nfe)
        if out.sampler == "ancestral" and out.precision == "float64":
            assert (out.network_passes <= LENGTH).all()
        assert bool(out.discriminator_passes.any()) == (out.sampler == "guided")


def test_the_last_move_has_the_tokens_and_passes_of_the_result(bundle, options):
    moves = []
    out = generate(bundle, num_samples=5, nfe=4, batch_size=5, on_move=moves.append, **options)
    if out.sampler not in WITHOUT_GRID:
        assert [move.t for move in moves] == [0.75, 0.5, 0.25, 0.0]
    assert [move.number for move in moves] == list(range(1, len(moves) + 1))
    assert torch.equal(moves[-1].tokens, out.tokens)
    assert torch.equal(moves[-1].network_passes, out.network_passes)
    assert torch.equal(moves[-1].discriminator_passes, out.discriminator_passes)
    for earlier, later in itertools.pairwise(moves):
        assert (later.network_passes - earlier.network_passes).unique().tolist() in ([0], [1], [0, 1])
        assert torch.equal(later.is_changed, later.tokens != earlier.tokens)
    changes = sum(int(move.is_changed.sum()) for move in moves)
    assert changes > 5 * LENGTH if out.sampler == "remasking" else changes == 5 * LENGTH


def test_a_prefix_is_kept(bundle, options):
    out = generate(bundle, num_samples=6, nfe=3, prefix="e f e", **options)
    assert (out.tokens[:, :3] == torch.tensor([4, 5, 4])).all()
    assert len(out.tokens[:, 3:].unique(dim=0)) > 1
    assert all(text.startswith("e f e ") for text in out.texts)


def test_the_masks_of_an_infill_text_and_the_positions_after_it_are_filled(bundle, options):
    out = generate(bundle, num_samples=32, nfe=3, infill="[MASK] c [MASK] [MASK] d", **options)
    assert (out.tokens[:, [1, 4]] == torch.tensor([2, 3])).all()
    assert (out.tokens != MASK).all()
    for free in (0, 2, 3, 5, 6, 7):
        assert len(out.tokens[:, free].unique()) > 1


def test_a_prompt_that_fills_the_sequence_needs_no_pass(bundle, options):
    out = generate(bundle, num_samples=2, nfe=3, prefix="a b c d e f a b", **options)
    assert out.tokens.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1]] * 2
    assert out.network_passes.tolist() == out.discriminator_passes.tolist() == [0, 0]


def test_a_sequence_may_be_shorter_than_the_context(bundle, options):
    assert generate(bundle, num_samples=2, nfe=2, length=5, **options).tokens.shape == (2, 5)


def test_the_noise_depends_on_the_seed_and_the_index_of_the_sequence_only(bundle):
    sampler = Ancestral(bundle.student, bundle.process)
    *_, last = sampler(Canvas.blank(3, LENGTH), time_grid(4), SequenceNoise(11, [0, 1, 2]))
    assert torch.equal(generate(bundle, num_samples=3, nfe=4, seed=11).tokens, last.z)


def test_the_role_chooses_the_network(bundle):
    by_role = {role: generate(bundle, num_samples=8, nfe=4, role=role).tokens for role in ("student", "teacher")}
    assert torch.equal(by_role["student"], generate(bundle, num_samples=8, nfe=4).tokens)
    assert torch.equal(by_role["teacher"], generate(Bundle(teacher=bundle.teacher), num_samples=8, nfe=4).tokens)
    assert not torch.equal(by_role["student"], by_role["teacher"])


def test_options_may_be_given_whole_or_by_name(bundle):
    whole = generate(bundle, num_samples=4, nfe=3, options=SamplingOptions(temperature=0.5, batch_size=2))
    assert torch.equal(whole.tokens, generate(bundle, num_samples=4, nfe=3, temperature=0.5).tokens)
    with pytest.raises(UsageError, match="not both"):
        generate(bundle, options=SamplingOptions(), temperature=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nfe": 0}, r"nfe lies in \[1, 65536\]; got 0$"),
        ({"nfe": -3}, "got -3"),
        ({"num_samples": 0}, "num_samples is 1 or more; got 0"),
        ({"batch_size": 0}, "batch_size is 1 or more; got 0"),
        ({"temprature": 1.0}, "options are sampler, .*; got temprature"),
        ({"temperature": -1.0}, r"temperature lies in \[0, 1e\+30\]; got -1.0"),
        ({"length": LENGTH + 1}, rf"length lies in \[1, {LENGTH}\]"),
        ({"length": -1}, rf"length lies in \[1, {LENGTH}\]"),
        ({"length": 0}, rf"length lies in \[1, {LENGTH}\]"),
        ({"prefix": "a b c d e f a b c"}, "at most 8 tokens here; this one has 9"),
        ({"prefix": "a b c", "length": 2}, "at most 2 tokens here; this one has 3"),
        ({"infill": "a [MASK] c", "length": 2}, "at most 2 tokens here; this one has 3"),
        ({"prefix": "a", "infill": "b"}, "not both"),
        ({"sampler": "guided", "precision": "float32"}, "guided sampling draws in float64"),
    ],
)
def test_invalid_arguments_are_refused(bundle, arguments, message):
    with pytest.raises(UsageError, match=message):
        generate(bundle, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "heun"}, "a sampler is one of ancestral, euler, .*remasking, published; got 'heun'"),
        ({"precision": "float16"}, "precision is one of float64, float32; got 'float16'"),
        ({"role": "judge"}, "a role is one of student, teacher, autoregressive; got 'judge'"),
    ],
)
def test_unknown_names_are_refused(bundle, unchecked, arguments, message):
    with pytest.raises(UsageError, match=message):
        generate(bundle, **arguments)


def test_missing_parts_of_a_bundle_are_named(bundle):
    alone = Bundle(teacher=bundle.teacher, name="mine")
    with pytest.raises(UsageError, match="bundle mine has no student"):
        generate(alone, role="student")
    with pytest.raises(UsageError, match="bundle mine has none: use ancestral"):
        generate(alone, sampler="guided")
    with pytest.raises(UsageError, match="a prompt needs a tokenizer; bundle mine has none"):
        generate(alone, prefix="a")


def test_settings_text_lists_the_settings_that_the_sampler_reads():
    assert settings_text(SamplingOptions("ancestral")) == ""
    assert settings_text(SamplingOptions("confidence")) == "measure probability, gumbel 0.0"
    assert settings_text(SamplingOptions("entropy-bounded", entropy_bound=2.0)) == "entropy_bound 2.0"
    assert settings_text(SamplingOptions("remasking", times=(1.0, 0.5, 0.0))).endswith("t_off 0.0, times 1 0.5 0")
    assert "num_candidates 4" in settings_text(SamplingOptions("guided"))
