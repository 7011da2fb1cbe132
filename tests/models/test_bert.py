"""The network of AntiBERTy against the code of ``transformers``, and as a denoiser."""

import pytest
import torch

from didi.errors import UsageError
from didi.models.bert import Bert, BertConfig
from didi.models.bert_layout import SYMBOLS, VOCABULARY, antiberty_from_state_dict
from didi.models.discriminator import num_parameters
from didi.models.networks import without_weights
from didi.models.proteins import ALPHABET, MASK_ID, RESIDUES

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
IDS = [ALPHABET.index(residue) for residue in RESIDUES]
QUERY = "bert.encoder.layer.1.attention.self.query.weight"
EMBEDDING = "bert.embeddings.word_embeddings.weight"


def settings_of(**changes):
    return {
        "model_type": "bert",
        "vocab_size": 25,
        "pad_token_id": 0,
        "max_position_embeddings": 16,
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "type_vocab_size": 2,
        **SHAPE,
        **changes,
    }


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.BertConfig(**{k: v for k, v in settings_of().items() if k != "model_type"})
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial norms and biases would hide errors
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def public_state_dict(model):
    """The tensors of a checkpoint of AntiBERTy, which has a pooler and three heads that logits do not depend on."""
    heads = {
        f"cls.{name}.{kind}": torch.ones(2) for name in ("species", "chain", "graft") for kind in ("weight", "bias")
    }
    pooler = {f"bert.pooler.dense.{kind}": torch.ones(2) for kind in ("weight", "bias")}
    return model.state_dict() | heads | pooler | {"bert.embeddings.position_ids": torch.arange(16)[None]}


@pytest.fixture(scope="module")
def network(model):
    return antiberty_from_state_dict(public_state_dict(model), settings_of())


def test_each_symbol_has_the_symbol_of_antiberty_with_the_same_name():
    assert len(VOCABULARY) == 25
    by_name = {ALPHABET[number]: VOCABULARY[symbol] for number, symbol in enumerate(SYMBOLS)}
    assert {name: by_name[name] for name in RESIDUES} == {name: name for name in RESIDUES}
    special = {"<cls>": "[CLS]", "<pad>": "[PAD]", "<eos>": "[SEP]", "<mask>": "[MASK]"}
    assert {name: by_name[name] for name in special} == special
    assert {by_name[name] for name in ALPHABET if name not in special and name not in RESIDUES} == {"[UNK]"}


@torch.no_grad()
def test_logits_equal_those_of_transformers_with_padding(model, network, canvas):
    expected = model(torch.tensor(SYMBOLS)[canvas.tokens], attention_mask=canvas.is_real.long()).logits
    logits = network(canvas.tokens, None, canvas.attention_mask)
    residues = torch.tensor(IDS)
    expected = expected[..., [VOCABULARY.index(residue) for residue in RESIDUES]]
    assert (logits[..., residues] - expected)[canvas.is_real].abs().max() < 1e-4
    assert expected.std() > 0.1
    is_drawn = torch.zeros(33, dtype=torch.bool)
    is_drawn[residues] = True
    assert (logits[..., ~is_drawn] == -torch.inf).all()
    one_hot = torch.nn.functional.one_hot(canvas.tokens, 33).float()
    torch.testing.assert_close(network(one_hot, None, canvas.attention_mask), logits, **CLOSE)


def test_the_number_of_parameters_is_that_of_antiberty_with_33_symbols():
    config = {k: v for k, v in settings_of(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048,
        max_position_embeddings=512,
    ).items() if k != "model_type"}  # fmt: skip
    with torch.device("meta"):
        num_public = num_parameters(transformers.BertForMaskedLM(transformers.BertConfig(**config)))
    num_here = num_parameters(without_weights(lambda: Bert(BertConfig())))
    assert num_public == 25_759_769
    assert num_here == num_public + 8 * 513 - 2 * 512  # eight more symbols with a bias each, no segments


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, QUERY), f"missing {QUERY}"),
        (lambda w: w | {"bert.encoder.layer.0.extra.weight": torch.ones(2)}, r"extra bert\.encoder\.layer\.0\.extra"),
        (lambda w: w | {QUERY: torch.ones(3, 4)}, rf"{QUERY} has shape \[3, 4\], not \[24, 24\]"),
        (lambda w: without(w, EMBEDDING), f"missing {EMBEDDING}"),
        (lambda w: w | {EMBEDDING: torch.ones(30, 24)}, r"has shape \[30, 24\], not \[25, 24\]"),
        (lambda w: w | {"cls.predictions.decoder.weight": torch.ones(25, 24)}, "is equal to bert.embeddings.word"),
        (lambda w: w | {"cls.predictions.decoder.bias": torch.ones(25)}, r"is equal to cls\.predictions\.bias"),
    ],
)
def test_a_wrong_state_dict_is_refused_by_key(model, change, message):
    weights = {name: value for name, value in public_state_dict(model).items() if "decoder" not in name}
    with pytest.raises(UsageError, match=message):
        antiberty_from_state_dict(change(weights), settings_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "esm"}, "has model_type bert"),
        ({"position_embedding_type": "relative_key"}, "has position_embedding_type absolute"),
        ({"vocab_size": 30}, "has vocab_size 25"),
        ({"hidden_size": 32}, "hidden_size in config.json is a size of the weights, 24; got 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers in config.json is a size of the weights, 2; got 3"),
        ({"max_position_embeddings": 17}, "max_position_embeddings in config.json is a size"),
        ({"num_attention_heads": None}, "num_attention_heads, a whole number, must be in config.json"),
        ({"num_attention_heads": 5}, r"multiple of num_heads; got 24 and 5"),
        ({"layer_norm_eps": 0}, "layer_norm_eps in config.json is a number between 0 and 1"),
        ({"layer_norm_eps": 5.0}, "layer_norm_eps in config.json is a number between 0 and 1; got 5"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(model, settings, message):
    with pytest.raises(UsageError, match=message):
        antiberty_from_state_dict(public_state_dict(model), settings_of(**settings))


def test_a_sequence_beyond_the_learned_positions_is_refused(network):
    with pytest.raises(UsageError, match="at most 16 positions, the learned ones; got 17: shorten it"):
        network(torch.full((1, 17), MASK_ID))


def test_dropout_acts_in_training_mode_only(network):
    noisy = Bert(BertConfig(hidden_size=24, num_blocks=1, num_heads=2, length=8, dropout=0.5))
    tokens = torch.full((1, 6), MASK_ID)
    assert not torch.equal(noisy.train()(tokens), noisy(tokens))
    assert torch.equal(noisy.eval()(tokens), noisy(tokens))
