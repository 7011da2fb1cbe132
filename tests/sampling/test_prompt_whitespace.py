"""A mask in a prompt takes one space before it, and no other whitespace."""

import pytest

import didi
from didi.errors import UsageError
from didi.sampling.prompt import canvas_from_prompt, prompt_ids


@pytest.fixture(scope="module")
def bundle():
    return didi.load("tiny-news")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a [MASK] b", "a[MASK] b"),
        ("a\n[MASK] b", "a\n[MASK] b"),
        ("a\t[MASK]", "a\t[MASK]"),
        ("a  [MASK]", "a [MASK]"),
        ("a \n [MASK]", "a \n[MASK]"),
        ("[MASK]\n\n[MASK] [MASK]b", "[MASK]\n\n[MASK][MASK]b"),
    ],
)
def test_whitespace_before_a_mask_is_kept(bundle, text, kept):
    tokenizer = bundle.tokenizer
    assert tokenizer.decode(prompt_ids(tokenizer, text), skip_special_tokens=False) == kept


def test_a_filled_text_keeps_its_lines(bundle):
    (text,) = didi.generate(bundle, num_samples=1, nfe=2, infill="One\n[MASK]\n\t[MASK] two", length=12).texts
    assert text.startswith("One\n")
    assert "\n\t" in text


def test_words_need_no_whitespace_between_them():
    ids = prompt_ids(didi.load("markov").tokenizer, "s3\n[MASK] s4")
    assert ids == [3, 32, 4]


def test_an_infill_text_needs_a_tokenizer_with_a_mask(bundle):
    from tokenizers import Tokenizer, models

    other = didi.Bundle(student=bundle.student, tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UsageError, match=r"needs a tokenizer with \[MASK\]; this one has none"):
        canvas_from_prompt(other, 8, infill="a [MASK]")
