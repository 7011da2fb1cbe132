"""Prompts of differing lengths in one sample set."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import didi
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate, generate_batches
from didi.sampling.guided import Guidance
from didi.sampling.prompts import Prompt
from didi.sampling.remasking import Remasking

LENGTH, MASK = 20, 6
WORDS = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "[MASK]": MASK}
PROMPTS = ("a b c d e f a", "f", "[MASK] c [MASK] [MASK] d", "", "b a b", " ".join("abcdef" * 3) + " a b")
PREFIXES = tuple(prompt for prompt in PROMPTS if "[MASK]" not in prompt)
OPTIONS = {
    "ancestral": {},
    "whole batch": {"is_whole_batch": True},
    "float32": {"precision": "float32"},
    "guided": {"sampler": "guided", "guidance": Guidance(num_candidates=3)},
    "first-hitting": {"sampler": "first-hitting"},
    "tau-leaping": {"sampler": "tau-leaping"},
    "confidence": {"sampler": "confidence", "order": ConfidenceOrder(gumbel=1.0)},
    "entropy-bounded": {"sampler": "entropy-bounded", "entropy_bound": 2.0},
    "remasking": {"sampler": "remasking", "remask": Remasking("rescale", 0.5)},
    "left to right": {"role": "autoregressive"},
}


@pytest.fixture(scope="module")
def bundle(make_dit, make_discriminator):
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    teacher = make_dit(vocab_size=7, length=LENGTH, seed=1)
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=7, mask_id=MASK, length=LENGTH, hidden_size=16, num_blocks=2, num_heads=2)
    return Bundle(
        student=make_dit(vocab_size=7, length=LENGTH, seed=2),
        teacher=teacher,
        discriminator=make_discriminator(teacher),
        autoregressive=AutoregressiveLM(shape).eval(),
        tokenizer=tokenizer,
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "first-hitting" else name for name in OPTIONS]
)
def test_the_samples_of_a_prompt_depend_on_no_other_prompt(bundle, name):
    options = {"num_samples": 2, "nfe": 3, **OPTIONS[name]}
    prompts = PREFIXES if name == "left to right" else PROMPTS
    whole = generate(bundle, prompts=prompts, seed=7, **options)
    assert whole.tokens.shape == (2 * len(prompts), LENGTH)
    for number, text in enumerate(prompts):
        prompt = Prompt.from_text(text)
        seed = prompt.own_seed(7)
        alone = generate(bundle, prefix=prompt.prefix, infill=prompt.infill, seed=seed, **options)
        rows = slice(2 * number, 2 * number + 2)
        assert torch.equal(whole.tokens[rows], alone.tokens)
        assert torch.equal(whole.network_passes[rows], alone.network_passes)
        assert torch.equal(whole.discriminator_passes[rows], alone.discriminator_passes)
    split = generate(bundle, prompts=prompts, seed=7, batch_size=3, **options)
    assert torch.equal(split.tokens, whole.tokens)
    backwards = generate(bundle, prompts=prompts[::-1], seed=7, **options)
    assert torch.equal(backwards.tokens.view(-1, 2, LENGTH).flip(0), whole.tokens.view(-1, 2, LENGTH))


def test_prompts_run_as_one_batch(bundle):
    moves = list(didi.stream(bundle, prompts=PROMPTS, nfe=3))
    assert {move.indices for move in moves} == {tuple(range(len(PROMPTS)))}


def test_each_prompt_has_its_own_seed(bundle):
    out = generate(bundle, prompts=["a", "b", Prompt(prefix="b", seed=5), Prompt(seed=5)], num_samples=1, nfe=4, seed=7)
    _, _, with_text, without_text = out.tokens
    texts = [Prompt(prefix="a"), Prompt(prefix="b"), Prompt(infill="a"), Prompt()]
    assert len({prompt.own_seed(seed) for prompt in texts for seed in (7, 8)}) == 8
    assert torch.equal(with_text, generate(bundle, prefix="b", num_samples=1, nfe=4, seed=5).tokens[0])
    assert torch.equal(without_text, generate(bundle, num_samples=1, nfe=4, seed=5).tokens[0])
    again = generate(bundle, prompts=["a", "b"], num_samples=1, nfe=4, seed=8).tokens
    assert not torch.equal(again, out.tokens[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts are one or more; got none"),
        ({"prompts": [1]}, "a prompt is a Prompt; got 1"),
        ({"prompts": ["a"], "num_samples": None}, "num_samples is a whole number; got None"),
        ({"prompts": ["a"], "prefix": "b"}, "not both"),
        ({"prompts": ["a"], "infill": "[MASK]"}, "not both"),
        ({"prompts": ["a", "b b b"], "length": 2}, r"prompt 2 \('b b b'\): a prompt has at most 2 tokens here"),
        ({"prompts": ["a", Prompt(prefix="a", infill="[MASK]")]}, r"prompt 2 \('a'\): give a prefix or an infill"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_prompts_that_do_not_fit_are_refused(bundle, arguments, message):
    with pytest.raises(UsageError, match=message):
        generate_batches(bundle, **arguments)  # before the first batch


@pytest.mark.usefixtures("unchecked")
def test_a_text_is_one_prompt_and_a_generator_is_several(bundle):
    assert len(generate(bundle, prompts="a b", num_samples=1, nfe=2).texts) == 1
    assert len(generate(bundle, prompts=(text for text in "ab"), num_samples=1, nfe=2).texts) == 2


@pytest.mark.parametrize("fields", [{"seed": 1.5}, {"seed": "x"}, {"prefix": 1}, {"infill": b"a"}])
@pytest.mark.usefixtures("unchecked")
def test_fields_of_a_prompt_with_another_type_are_refused(fields):
    with pytest.raises(UsageError, match=f"{next(iter(fields))} is a"):
        Prompt(**fields)


def test_batches_are_yielded_as_they_are_finished(bundle):
    moves = []
    batches = generate_batches(bundle, num_samples=7, nfe=3, batch_size=3, seed=2, on_move=moves.append)
    first = next(batches)
    assert len(first.texts) == 3
    assert {move.indices for move in moves} == {(0, 1, 2)}
    rest = list(batches)
    whole = generate(bundle, num_samples=7, nfe=3, seed=2)
    assert [len(batch.texts) for batch in rest] == [3, 1]
    assert torch.equal(torch.cat([batch.tokens for batch in (first, *rest)]), whole.tokens)
    assert [text for batch in (first, *rest) for text in batch.texts] == whole.texts
    assert all(batch.seed == 2 and batch.seconds > 0 for batch in (first, *rest))
