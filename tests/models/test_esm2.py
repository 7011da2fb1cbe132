"""ESM-2 against the code of ``transformers``, and as a denoiser."""

import pytest
import torch

from didi.errors import UsageError
from didi.models.discriminator import num_parameters
from didi.models.esm2 import SIZES, Esm2, Esm2Config
from didi.models.esm2_layout import esm2_from_state_dict, to_public_names
from didi.models.initial_state import InitialState
from didi.models.networks import without_weights
from didi.models.proteins import ALPHABET, EXCLUDED_IDS, MASK_ID

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def settings_of(**changes):
    return {
        "model_type": "esm",
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "max_position_embeddings": 64,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
        "token_dropout": True,
        **SHAPE,
        **changes,
    }


def reference(seed=0, **changes):
    torch.manual_seed(seed)
    config = transformers.EsmConfig(**{k: v for k, v in settings_of(**changes).items() if k != "model_type"})
    model = transformers.EsmForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial norms and biases would hide errors
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def network():
    model = reference()
    return esm2_from_state_dict(model.state_dict(), settings_of())


@pytest.mark.parametrize("changes", [{}, {"token_dropout": False}, {"tie_word_embeddings": False}], ids=str)
@torch.no_grad()
def test_logits_equal_those_of_transformers_with_padding(canvas, changes):
    model = reference(**changes)
    network = esm2_from_state_dict(model.state_dict(), settings_of(**changes))
    assert network.config.has_token_dropout == changes.get("token_dropout", True)
    assert network.config.is_tied == changes.get("tie_word_embeddings", True)
    expected = model(canvas.tokens, attention_mask=canvas.is_real.long()).logits
    logits = network(canvas.tokens, None, canvas.attention_mask)
    is_drawn = torch.ones(33, dtype=torch.bool)
    is_drawn[[*EXCLUDED_IDS, MASK_ID]] = False
    assert (logits[..., ~is_drawn] == -torch.inf).all()
    error = (logits - expected)[canvas.is_real][:, is_drawn].abs().max()
    assert error < 1e-4
    assert expected.std() > 0.1
    one_hot = torch.nn.functional.one_hot(canvas.tokens, 33).float()
    torch.testing.assert_close(network(one_hot, None, canvas.attention_mask), logits, **CLOSE)


@pytest.mark.parametrize(("size", "num"), [("150m", 148_139_553), ("650m", 651_042_593), ("3b", 2_839_004_193)])
def test_numbers_of_parameters_match_transformers(size, num):
    shape = SIZES[size]
    config = settings_of(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_blocks,
        num_attention_heads=shape.num_heads,
        intermediate_size=4 * shape.hidden_size,
    )
    with torch.device("meta"):
        model = transformers.EsmForMaskedLM(transformers.EsmConfig(**config))
    num_contact_head = shape.num_blocks * shape.num_heads + 1
    assert sum(parameter.numel() for parameter in model.parameters()) - num_contact_head == num
    assert num_parameters(without_weights(lambda: Esm2(shape))) == num


def test_the_alphabet_is_that_of_the_public_checkpoints():
    from transformers.models.esm.configuration_esm import get_default_vocab_list

    assert get_default_vocab_list() == ALPHABET
    assert [ALPHABET[symbol] for symbol in EXCLUDED_IDS] == [
        "<cls>",
        "<pad>",
        "<eos>",
        "<unk>",
        "X",
        ".",
        "-",
        "<null_1>",
    ]


def test_embedding_noise_is_refused_with_token_dropout(network):
    tokens = torch.full((1, 4), MASK_ID)
    with pytest.raises(UsageError, match="set noise_std to 0"):
        InitialState(0.5, 0.1).features(network, tokens, tokens == MASK_ID, torch.randn(1, 4, 24))


def test_public_names_round_trip(network):
    public = to_public_names(network.state_dict())
    assert set(public) == set(esm_keys(reference())) - {"lm_head.decoder.weight"}
    restored = esm2_from_state_dict(public, settings_of())
    for name, value in network.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value)


def esm_keys(model):
    unread = ("esm.contact_head.", "esm.rotary_embeddings", "esm.embeddings.position")
    return [name for name in model.state_dict() if not name.startswith(unread)]


def hub_state_dict(model):
    """The keys of the files on the Hub: positions and frequencies of every layer, which are constants."""
    weights = {name: value for name, value in model.state_dict().items() if "rotary" not in name}
    weights["esm.embeddings.position_ids"] = torch.arange(64)[None]
    weights["esm.embeddings.position_embeddings.weight"] = torch.randn(64, 24)
    for layer in range(2):
        frequencies = model.state_dict()["esm.rotary_embeddings.inv_freq"].half()
        weights[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = frequencies
    return weights


@pytest.mark.parametrize("prefix", ["", "net.", "model.net.", "module.model.net."])
@torch.no_grad()
def test_files_of_the_hub_and_of_training_are_read(canvas, prefix):
    model = reference()
    weights = {prefix + name: value for name, value in hub_state_dict(model).items()}
    network = esm2_from_state_dict(weights, settings_of())
    expected = model(canvas.tokens, attention_mask=canvas.is_real.long()).logits
    logits = network(canvas.tokens, None, canvas.attention_mask)
    assert (logits - expected)[canvas.is_real][:, 4:24].abs().max() < 1e-4


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


QUERY = "esm.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, QUERY), f"missing {QUERY}"),
        (lambda w: w | {"esm.pooler.dense.weight": torch.ones(2)}, "extra esm.pooler.dense.weight"),
        (lambda w: w | {QUERY: torch.ones(3, 4)}, rf"{QUERY} has shape \[3, 4\], not \[24, 24\]"),
        (lambda w: without(w, "esm.embeddings.word_embeddings.weight"), "missing esm.embeddings.word_embeddings"),
        (lambda w: w | {f"net.{QUERY}": torch.ones(1)}, "each key once"),
        (
            lambda w: w | {"esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq": torch.ones(6)},
            "rotary frequencies are",
        ),
    ],
)
def test_a_wrong_state_dict_is_refused_by_key(change, message):
    with pytest.raises(UsageError, match=message):
        esm2_from_state_dict(change(hub_state_dict(reference())), settings_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "has model_type esm"),
        ({"position_embedding_type": "absolute"}, "has position_embedding_type rotary"),
        ({"emb_layer_norm_before": 0}, "has emb_layer_norm_before False in config.json; got 0: other values"),
        ({"hidden_size": 32}, "hidden_size in config.json is a size of the weights, 24; got 32"),
        ({"intermediate_size": 96}, "intermediate_size in config.json is a size"),
        ({"mask_token_id": 5}, "mask_token_id in config.json is 32"),
        ({"num_hidden_layers": 3}, r"missing esm\.encoder\.layer\.2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is a whole number in"),
        ({"num_attention_heads": None}, "num_attention_heads, a whole number, must be in config.json"),
        ({"layer_norm_eps": 0}, "layer_norm_eps in config.json is a number between 0 and 1"),
        ({"num_attention_heads": 5}, "multiple of 2 \\* num_heads"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        esm2_from_state_dict(reference().state_dict(), settings_of(**settings))


def test_a_tied_head_that_differs_from_the_embedding_is_refused():
    weights = reference().state_dict() | {"lm_head.decoder.weight": torch.ones(33, 24)}
    assert not esm2_from_state_dict(weights, settings_of()).config.is_tied
    with pytest.raises(UsageError, match="the head of a tied ESM-2 is its embedding"):
        esm2_from_state_dict(weights, settings_of(tie_word_embeddings=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_id": 33}, r"special symbols lie in \[0, vocab_size\) .* got \[.*33\] and 33"),
        ({"begin_id": 40}, r"special symbols lie in .* got \[.*40\] and 33"),
        ({"excluded_ids": (-1,)}, r"special symbols lie in .* got \[-1, .*\] and 33"),
        ({"num_heads": 7}, r"multiple of 2 \* num_heads \(rotary pairs\); got 640 and 7 heads"),
    ],
)
def test_an_impossible_shape_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Esm2Config(**changes)
