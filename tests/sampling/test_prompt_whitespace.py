"""One space before a mask in a prompt is removed; other whitespace is kept."""

import pytest
from tokenizers import Tokenizer, models

import didi
from didi.errors import UsageError
from didi.sampling.prompt import canvas_from_prompt, prompt_ids


@pytest.fixture(scope="module")
def bundle():
    return didi.load("tiny-news")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [MASK] b", "a[MASK] b"),
        ("a\n[MASK] b", "a\n[MASK] b"),
        ("a\t[MASK]", "a\t[MASK]"),
        ("a  [MASK]", "a [MASK]"),
        ("a \n [MASK]", "a \n[MASK]"),
        ("[MASK]\n\n[MASK] [MASK]b", "[MASK]\n\n[MASK][MASK]b"),
    ],
)
def test_one_space_before_a_mask_is_removed_and_other_whitespace_is_kept(bundle, text, expected):
    tokenizer = bundle.tokenizer
    assert tokenizer.decode(prompt_ids(tokenizer, text), skip_special_tokens=False) == expected


def test_a_filled_text_keeps_its_lines(bundle):
    (text,) = didi.generate(bundle, num_samples=1, nfe=2, infill="One\n[MASK]\n\t[MASK] two", length=12).texts
    assert text.startswith("One\n")
    assert "\n\t" in text


def test_a_word_level_tokenizer_ignores_whitespace_before_a_mask():
    ids = prompt_ids(didi.load("markov").tokenizer, "s3\n[MASK] s4")
    assert ids == [3, 32, 4]


def test_an_infill_text_needs_a_tokenizer_with_a_mask(bundle):
    other = didi.Bundle(student=bundle.student, tokenizer=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UsageError, match=r"needs a tokenizer with \[MASK\]; this one has none"):
        canvas_from_prompt(other, 8, infill="a [MASK]")
