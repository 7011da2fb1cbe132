"""A tokenizer that does not fit its network is refused by load and convert; a missing [MASK] is added."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import didi
from didi.apps.convert import run_convert
from didi.data.text import load_tokenizer
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.tokenizer_fit import MASK, fitted_tokenizer

VOCAB, MASK_ID = 4, 3
FITTING = {"a": 0, "b": 1, "c": 2, MASK: 3}
WITHOUT_MASK = {"a": 0, "b": 1, "c": 2}
REFUSED = [
    (FITTING | {"d": 4}, "fit into the network's 4 symbols; .* has 'd' with id 4"),
    (WITHOUT_MASK | {"z": 700}, "fit into the network's 4 symbols; .* has 'z' with id 700"),
    ({"a": 0, MASK: 1, "b": 2}, "has the id of the network's mask, 3; .* has it with id 1"),
    ({"a": 0, "b": 1, "c": 2, "<mask>": 3}, "has the id of the network's mask, 3; .* has '<mask>' there"),
    ({"a": 0, "b": 1}, "has the id of the network's mask, 3; .* has no .*, and its next free id is another"),
]


def tokenizer(vocab):
    result = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    return result


@pytest.fixture
def save_with_tokenizer(make_dit, tmp_path):
    """A function that saves a bundle with a tokenizer of the given vocabulary."""

    def write(vocab):
        folder = didi.save(didi.Bundle(student=make_dit(vocab_size=VOCAB, length=6)), tmp_path / "bundle")
        tokenizer(vocab).save(str(folder / "tokenizer.json"))
        return folder

    return write


@pytest.mark.parametrize(("vocab", "message"), REFUSED)
def test_a_bundle_with_a_tokenizer_of_another_network_is_refused(save_with_tokenizer, vocab, message):
    with pytest.raises(UsageError, match=message) as caught:
        didi.load(save_with_tokenizer(vocab))
    assert "\n" not in str(caught.value)


def saved_checkpoint(make_dit, tmp_path):
    source = tmp_path / "hub"
    source.mkdir()
    torch.save(make_dit(vocab_size=VOCAB).state_dict(), source / "pytorch_model.bin")
    return source


@pytest.mark.parametrize(("vocab", "message"), REFUSED)
def test_a_checkpoint_with_a_tokenizer_of_another_network_is_refused(make_dit, tmp_path, vocab, message):
    source = saved_checkpoint(make_dit, tmp_path)
    tokenizer(vocab).save(str(source / "tokenizer.json"))
    with pytest.raises(UsageError, match=message):
        run_convert(["mdlm", str(source), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    run_convert(["mdlm", str(source), "--out", str(tmp_path / "out"), "--tokenizer", "none"])
    assert didi.load(tmp_path / "out").tokenizer is None


@pytest.mark.parametrize("vocab", [vocab for vocab, _ in REFUSED[:4]])
def test_a_named_tokenizer_of_another_network_is_refused(make_dit, tmp_path, vocab):
    tokenizer(vocab).save(str(tmp_path / "other.json"))
    flags = ["--tokenizer", str(tmp_path / "other.json")]
    with pytest.raises(UsageError, match=r"of a tokenizer .*other.json \(--tokenizer\) has"):
        run_convert(["mdlm", str(saved_checkpoint(make_dit, tmp_path)), "--out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_a_missing_mask_is_added_if_it_gets_the_id_of_the_network(save_with_tokenizer):
    folder = save_with_tokenizer(WITHOUT_MASK)
    bundle = didi.load(folder)
    assert bundle.tokenizer.get_vocab() == FITTING
    assert MASK not in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    filled = didi.generate(bundle, num_samples=3, nfe=2, infill="b [MASK] c", seed=0)
    assert filled.tokens[:, :3].tolist() == [[1, filled.tokens[i, 1], 2] for i in range(3)]
    assert (filled.tokens != MASK_ID).all()


def test_a_converted_tokenizer_gets_the_mask_of_the_network(make_dit, tmp_path):
    torch.save(make_dit(vocab_size=VOCAB).state_dict(), tmp_path / "last.ckpt")
    tokenizer(WITHOUT_MASK).save(str(tmp_path / "tokenizer.json"))
    run_convert(["mdlm", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "out")])
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).get_vocab() == FITTING


def test_a_fitting_tokenizer_is_unchanged():
    fitting, without_mask = tokenizer(FITTING), tokenizer(WITHOUT_MASK)
    assert fitted_tokenizer(fitting, vocab_size=4, mask_id=3, source="x") is fitting
    assert fitted_tokenizer(fitting, vocab_size=9, mask_id=3, source="x") is fitting
    assert fitted_tokenizer(without_mask, vocab_size=4, mask_id=3, source="x").get_vocab() == FITTING
    assert without_mask.get_vocab() == WITHOUT_MASK


def mask_settings(of_tokenizer):
    """Settings of the added token [MASK], without its id."""
    (mask,) = [token for token in json.loads(of_tokenizer.to_str())["added_tokens"] if token["content"] == MASK]
    return {name: value for name, value in mask.items() if name != "id"}


def test_an_added_mask_has_the_settings_of_that_of_a_tokenizer_for_training(tmp_path):
    tokenizer({"a": 0}).save(str(tmp_path / "tokenizer.json"))
    fitted = fitted_tokenizer(tokenizer({"a": 0}), vocab_size=2, mask_id=1, source="x")
    assert mask_settings(fitted) == mask_settings(load_tokenizer(str(tmp_path / "tokenizer.json")))


def test_a_uniform_state_network_needs_no_mask_but_symbols_that_fit(make_dit, tmp_path):
    network = make_dit(vocab_size=VOCAB, mask_id=None)
    folder = didi.save(didi.Bundle(teacher=network, process=Uniform(VOCAB)), tmp_path / "bundle")
    tokenizer(WITHOUT_MASK).save(str(folder / "tokenizer.json"))
    assert didi.load(folder).tokenizer.get_vocab() == WITHOUT_MASK
    in_prompts_only = WITHOUT_MASK | {
        MASK: VOCAB
    }  # as in tokenizers of this library: [MASK] is not a symbol of the network
    tokenizer(in_prompts_only).save(str(folder / "tokenizer.json"))
    assert didi.load(folder).tokenizer.get_vocab() == in_prompts_only
    tokenizer(WITHOUT_MASK | {"d": 4}).save(str(folder / "tokenizer.json"))
    with pytest.raises(UsageError, match="fit into the network's 4 symbols"):
        didi.load(folder)
