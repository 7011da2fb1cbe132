"""Detokenisation: every rule of every corpus; expected values are from the published functions."""

import pytest

from didi.data.detokenize import LAMBADA, LM1B, PTB, SCIENTIFIC_PAPERS, WIKITEXT, detokenized


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("the company 's stock", "the company's stock"),
        ("the traders ' fears", "the traders' fears"),
        ("it does n't", "it doesn't"),
        ("one \n two", "one\ntwo"),
        ("a and\\/or b", "a and/or b"),
        ("from N N to N N N %", "from 1 1 to 1 1 1 %"),
        ("about $ N billion", "about $1 billion"),
        ("is # N here", "is #1 here"),
        ("mr. <unk> said", "mr. ? said"),
    ],
)
def test_the_rules_of_ptb_are_applied(tokenised, text):
    assert detokenized(tokenised, PTB) == text


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("the players ' union", "the players' union"),
        ("a twenty @-@ five @,@ or @.@ six", "a twenty-five,or.six"),
        ("a : b ; c . d ! e ? f , g", "a: b; c. d! e? f, g"),
        ("( a ) [ b ] { c } \" d \" ' e '", "(a) [b] {c} \"d\" 'e'"),
        ("(  a ", "(  a "),
        (" = Title = \n", " = Title =\n"),
        ("= = A = = \n = = = B = = = \n = = = = C = = = =", "== A ==\n=== B ===\n==== C ===="),
        ("5 ° C", "5°C"),
        ("about N men", "about 1 men"),
        ("the ship 's crew", "the ship's crew"),
    ],
)
def test_the_rules_of_wikitext_are_applied(tokenised, text):
    assert detokenized(tokenised, WIKITEXT) == text


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("see http : / / a and https : / / b", "see http://a and https://b"),
        ("we 're here", "we're here"),
        ("we went . He stayed .", "we went. He stayed."),
        ("who ? me ?", "who? me?"),
        ("stop ! now !", "stop! now!"),
        ("a , b : c ; d / e", "a, b: c; d/e"),
        ('" one two " ( three ) [ four ]', '"one two" (three) [four]'),
        ("' one two ' and ' three '", "'one two' and 'three'"),
        ("$ 5 or £ 4", "$5 or £4"),
    ],
)
def test_the_rules_of_lm1b_are_applied(tokenised, text):
    assert detokenized(tokenised, LM1B) == text


@pytest.mark.parametrize(
    ("tokenised", "text"), [("  “ Well , ” he said \n", '\n" Well , " he said'), ("", "\n"), ("\n \n", "\n")]
)
def test_the_rules_of_lambada_are_applied(tokenised, text):
    assert detokenized(tokenised, LAMBADA) == text


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("@xmath0 is ( see fig . 1 ) a @-@ b we .", "@xmath0 is (see fig. 1) a-b we."),
        ("the method 's error , $ 5 .", "the method's error, $5."),
    ],
)
def test_scientific_papers_have_the_rules_of_wikitext_and_lm1b(tokenised, text):
    assert detokenized(tokenised, SCIENTIFIC_PAPERS) == text
