"""GPT-2 of ``transformers``, in every file format, is converted to an autoregressive network that computes the same."""

import json

import pytest
import torch
from torch.nn import functional as F

import didi
from didi.apps.convert import run_convert
from didi.data.source import source_for
from didi.data.text import load_tokenizer
from didi.errors import UsageError
from didi.models import foreign, gpt2_layout
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.networks import without_weights
from didi.models.tokenizer_fit import MASK

from .gpt2_files import BEGIN, DOCUMENTS, LENGTH, VOCAB, gpt2_folder, random_gpt2, tokenizer

TOKENS = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))


def converted(source, tmp_path, *flags, out="bundle"):
    run_convert(["gpt2", str(source), "--out", str(tmp_path / out), *flags])
    return didi.load(tmp_path / out)


@torch.no_grad()
def assert_same_logits(network, model):
    torch.testing.assert_close(network(TOKENS), model(TOKENS).logits, rtol=0, atol=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_logits_nll_and_greedy_continuation_are_those_of_transformers(tmp_path):
    model = random_gpt2()
    model.save_pretrained(tmp_path / "hub")
    bundle = converted(tmp_path / "hub", tmp_path)
    network = bundle.autoregressive
    assert bundle.network() is network
    assert (network.mask_id, network.begin_id, network.vocab_size, network.length) == (None, BEGIN, VOCAB, LENGTH)
    assert_same_logits(network, model)
    read = torch.cat([torch.full((3, 1), BEGIN), TOKENS[:, :-1]], 1)
    expected = F.cross_entropy(model(read).logits.transpose(1, 2), TOKENS, reduction="none")
    torch.testing.assert_close(network.nll(TOKENS), expected, rtol=0, atol=2e-5)
    begin = torch.full((1, 1), BEGIN)
    longest = LENGTH - 1  # in transformers, the begin symbol takes a position
    greedy = model.generate(
        begin, attention_mask=torch.ones_like(begin), max_new_tokens=longest, do_sample=False, eos_token_id=None,
        pad_token_id=BEGIN,
    )  # fmt: skip
    drawn = didi.generate(bundle, num_samples=2, temperature=1e-4, length=longest)
    assert drawn.tokens.tolist() == greedy[:, 1:].tolist() * 2


FORMS = {
    "bare keys and causal masks, as the public gpt2": {"prefix": "", "masks": True},
    "a head that is the embedding": {"head": True},
    "bin": {"form": "bin", "head": True, "masks": True},
    "shards": {"form": "shards"},
    "shards with bare keys": {"form": "shards", "prefix": "", "head": True},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_the_files_holds_the_same_network(tmp_path, form):
    model = random_gpt2()
    network = converted(gpt2_folder(tmp_path / "hub", model, **form), tmp_path).autoregressive
    assert_same_logits(network, model)
    assert network.config.is_tied
    assert [name for name in network.state_dict() if "lm_head" in name] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": False},
        {"n_inner": 20},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 0.3},
        {"n_embd": 16, "n_layer": 4, "n_head": 2},
        {"bos_token_id": 7},
    ],
    ids=str,
)
def test_settings_of_config_json_are_read(tmp_path, settings):
    model = random_gpt2(**settings)
    network = converted(gpt2_folder(tmp_path / "hub", model), tmp_path).autoregressive
    assert_same_logits(network, model)
    assert network.config.is_tied is model.config.tie_word_embeddings
    assert network.begin_id == model.config.bos_token_id


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_other_types_become_float32(tmp_path, dtype):
    model = random_gpt2().to(dtype)
    network = converted(gpt2_folder(tmp_path / "hub", model), tmp_path).autoregressive
    assert_same_logits(network, model.float())


def test_a_file_without_config_json_needs_heads_and_begin_symbol(tmp_path):
    model = random_gpt2()
    (gpt2_folder(tmp_path / "hub", model, head=True) / "config.json").unlink()
    file = tmp_path / "hub" / "model.safetensors"
    with pytest.raises(UsageError, match=r"n_head, a whole number, must be in config.json"):
        converted(file, tmp_path)
    with pytest.raises(UsageError, match=r"bos_token_id in config.json, which begins a text, is one of 279 symbols"):
        converted(file, tmp_path, "--num-heads", "3")
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"bos_token_id": BEGIN}))
    assert_same_logits(converted(file, tmp_path, "--num-heads", "3").autoregressive, model)


def test_the_head_is_the_embedding_where_config_json_does_not_say(tmp_path):
    source = gpt2_folder(tmp_path / "hub", random_gpt2())
    settings = json.loads((source / "config.json").read_text())
    del settings["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(settings))
    assert converted(source, tmp_path).autoregressive.config.is_tied


def replace_weights(folder, **weights):
    """Replace weights in a folder, and remove those whose value is None."""
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors") | weights
    save_file({name: value for name, value in held.items() if value is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"h.0.ln_1.bias": None, "ln_f.weight": None}, r"missing transformer.h.0.ln_1.bias; missing transformer.ln_f"),
        ({"h.0.attn.bias2": torch.ones(1)}, r"; extra transformer.h.0.attn.bias2$"),
        ({"h.0.crossattention.bias": torch.ones(1)}, r"; extra transformer.h.0.crossattention.bias$"),
        ({"x.h.0.attn.bias": torch.ones(1)}, r"; extra transformer.x.h.0.attn.bias$"),
        ({"teacher.x": torch.ones(1)}, r"; extra transformer.teacher.x$"),
        ({"discriminator.x": torch.ones(1)}, r"; extra transformer.discriminator.x$"),
        ({"ln_f.bias": torch.ones(5)}, r"transformer.ln_f.bias has shape \[5\], not \[12\]"),
        ({"h.1.mlp.c_fc.weight": torch.ones(48, 12)}, r"c_fc.weight has shape \[48, 12\], not \[12, 48\]"),
        ({"wte.weight": None}, r"holds the matrix transformer.wte.weight, from which sizes are read; missing"),
        ({"wpe.weight": torch.ones(16)}, r"the matrix transformer.wpe.weight, .* got shape \[16\]"),
        ({"wpe.weight": torch.ones(15, 12)}, r"n_positions in config.json .* is 16, and .* has shape \[15, 12\]"),
        ({"ln_f.bias": torch.ones(12, dtype=torch.int8)}, "ln_f.bias has torch.int8"),
        ({"lm_head.weight": torch.ones(279, 12)}, "the head of a tied GPT-2 is its embedding"),
        ({"lm_head.weight": torch.ones(278, 12)}, "the head of a tied GPT-2 is its embedding"),
    ],
    ids=str,
)
def test_every_key_is_used_and_has_its_shape(tmp_path, weights, message):
    replace_weights(gpt2_folder(tmp_path / "hub", random_gpt2(), prefix=""), **weights)
    with pytest.raises(UsageError, match=message) as caught:
        converted(tmp_path / "hub", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_an_untied_head_must_be_in_the_file(tmp_path):
    source = gpt2_folder(tmp_path / "hub", random_gpt2(tie_word_embeddings=False), head=False)
    with pytest.raises(UsageError, match=r"missing lm_head.weight$"):
        converted(source, tmp_path)
    assert converted(source, tmp_path, "--tied").autoregressive.config.is_tied


def test_keys_of_a_missing_block_are_named(tmp_path):
    source = gpt2_folder(tmp_path / "hub", random_gpt2())
    replace_weights(source, **{f"transformer.h.1.{name}": None for name in block_keys()})
    with pytest.raises(UsageError, match=r"missing transformer.h.1.ln_1.weight; .*missing transformer.h.1.mlp.c_proj"):
        converted(source, tmp_path)


def block_keys():
    root = "transformer.h.1."
    return [name.removeprefix(root) for name in random_gpt2().state_dict() if name.startswith(root)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type gpt2 in config.json; got 'gpt_neo'"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "a GPT-2 checkpoint has scale_attn_by_inverse_layer_idx False in config.json; got True",
        ),
        ({"scale_attn_weights": False}, "scale_attn_weights True in config.json; got False"),
        ({"add_cross_attention": True}, "add_cross_attention False in config.json; got True"),
        ({"activation_function": "mish"}, "activation_function in config.json is one of gelu_new, .*; got 'mish'"),
        ({"layer_norm_epsilon": "1"}, "layer_norm_epsilon in config.json is a number between 0 and 1; got '1'"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon in config.json is a number between 0 and 1; got 0"),
        ({"n_head": "3"}, "it is '3'"),
        ({"n_head": 5}, "hidden_size is a multiple of num_heads; got 12 and 5"),
        ({"n_layer": "two"}, "n_layer in config.json is 2, the blocks of the weights; got 'two'"),
        ({"n_layer": 2**31}, "n_layer in config.json is 2, the blocks of the weights; got 2147483648"),
        ({"vocab_size": 280}, r"vocab_size in config.json is a size of the weights; it is 280, and .* \[279, 12\]"),
        ({"n_inner": 24}, r"n_inner in config.json is a size of the weights; it is 24, and .* shape \[12, 48\]"),
        ({"bos_token_id": 279}, "bos_token_id in config.json, .* got 279"),
        ({"bos_token_id": None}, "bos_token_id in config.json, .* got None"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    source = gpt2_folder(tmp_path / "hub", random_gpt2())
    config = json.loads((source / "config.json").read_text()) | settings
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message):
        converted(source, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--role", "teacher"], "does not read --role, since the network has the role autoregressive"),
        (["--weights", "ema"], "does not read --weights"),
        (["--length", "8"], "does not read --length"),
        (["--nfe", "8"], "does not read --nfe"),
        (["--nfe", "0"], "does not read --nfe"),
        (["--length", "0"], "does not read --length"),
        (["--discriminator", "x"], "does not read --discriminator"),
    ],
)
def test_flags_of_other_layouts_are_refused(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        converted(gpt2_folder(tmp_path / "hub", random_gpt2()), tmp_path, *flags)


def test_a_training_checkpoint_with_an_average_is_refused(tmp_path):
    content = {"state_dict": random_gpt2().state_dict(), "ema": {"shadow_params": [torch.ones(1)]}}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="holds one set of weights"):
        converted(tmp_path / "last.ckpt", tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("owner/name", "owner/name"),
    ],
)
def test_a_hub_name_may_lack_its_owner(tmp_path, monkeypatch, name, expected):
    requested = []
    gpt2_folder(tmp_path / "hub", random_gpt2())

    def download(repository, patterns, revision=None):
        requested.append((repository, revision))
        return tmp_path / "hub"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign, "download", download)
    bundle = converted(name, tmp_path, "--revision", "r")
    assert requested == [(expected, "r")]
    assert bundle.provenance == {
        "source": name, "layout": "gpt2", "weights": "raw", "block_layout": "stream", "revision": "r",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_pickled_weights_are_downloaded_only_where_there_are_no_others(tmp_path, monkeypatch, form):
    requested = []
    gpt2_folder(tmp_path / "hub", random_gpt2(), form=form)

    def download(repository, patterns, revision=None):
        requested.append("*.bin" in patterns)
        return tmp_path / "hub"

    monkeypatch.setattr(foreign, "download", download)
    converted("owner/name", tmp_path)
    assert requested == ([False, True] if form == "bin" else [False])


def test_another_name_without_an_owner_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="one of gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2; 'gpt3' is none"):
        converted("gpt3", tmp_path)
    with pytest.raises(UsageError, match="a checkpoint is a file, a folder or a Hub repository"):
        run_convert(["mdlm", "gpt2", "--out", "x"])
    gpt2_folder(tmp_path / "gpt2", random_gpt2())  # a folder of that name comes first
    assert converted("gpt2", tmp_path).autoregressive.vocab_size == VOCAB


# Tokenizers


def without_mask(whole):
    """The tokenizer without [MASK], as in the original layout."""
    from tokenizers import Tokenizer

    record = json.loads(whole.to_str())
    record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] != MASK]
    return Tokenizer.from_str(json.dumps(record))


def test_a_mask_is_added_to_the_tokenizer_in_the_folder(tmp_path):
    source = gpt2_folder(tmp_path / "hub", random_gpt2())
    lacking = without_mask(tokenizer())
    lacking.save(str(source / "tokenizer.json"))
    assert lacking.get_vocab_size() == VOCAB
    bundle = converted(source, tmp_path)
    assert bundle.tokenizer.get_vocab() == tokenizer().get_vocab()
    assert bundle.process.mask_id == VOCAB == bundle.tokenizer.token_to_id(MASK)


@pytest.mark.slow
def test_a_network_with_more_symbols_than_tokens_keeps_its_tokenizer(tmp_path):
    model = random_gpt2(vocab_size=320)
    source = gpt2_folder(tmp_path / "hub", model)
    for number, given in enumerate((without_mask(tokenizer()), tokenizer())):
        given.save(str(source / "tokenizer.json"))
        bundle = converted(source, tmp_path, out=str(number))
        assert bundle.tokenizer.get_vocab() == given.get_vocab()
        assert didi.generate(bundle, num_samples=2).tokens.max() > VOCAB
        (tmp_path / "corpus.txt").write_text("\n\n".join(DOCUMENTS * 4))
        assert source_for(bundle, str(tmp_path / "corpus.txt")).test.shape[1] == LENGTH


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(tmp_path):
    source = gpt2_folder(tmp_path / "hub", random_gpt2(vocab_size=200))
    tokenizer().save(str(source / "tokenizer.json"))
    with pytest.raises(UsageError, match="fit into the network's 200 symbols"):
        converted(source, tmp_path)
    assert converted(source, tmp_path, "--tokenizer", "none").tokenizer is None


def test_a_network_of_the_public_size_has_the_tokenizer_of_gpt2(tmp_path, monkeypatch):
    """A network of 50,257 symbols has the tokenizer of masked-diffusion models, whose [MASK] is the next symbol."""
    from didi.apps import convert_parts

    names = []

    def load(name):
        names.append(name)
        return tokenizer()

    monkeypatch.setattr(convert_parts, "load_tokenizer", load)
    monkeypatch.setattr(convert_parts, "GPT2_WITH_MASK", VOCAB + 1)
    bundle = converted(gpt2_folder(tmp_path / "hub", random_gpt2()), tmp_path)
    assert names == ["gpt2"]
    assert bundle.tokenizer.token_to_id(MASK) == VOCAB


# Bundles


@pytest.mark.slow
def test_a_bundle_may_hold_gpt2_and_diffusion_networks_over_the_same_tokens(tmp_path, make_dit):
    network = converted(gpt2_folder(tmp_path / "hub", random_gpt2()), tmp_path, "--tokenizer", "none").autoregressive
    student = make_dit(vocab_size=VOCAB + 1, length=LENGTH)
    both = didi.Bundle(student=student, autoregressive=network, tokenizer=tokenizer())
    loaded = didi.load(didi.save(both, tmp_path / "both"))
    assert loaded.process.mask_id == VOCAB
    torch.testing.assert_close(loaded.autoregressive.nll(TOKENS), network.nll(TOKENS))
    for role in ("student", "autoregressive"):
        assert didi.generate(loaded, num_samples=2, nfe=2, role=role).tokens.max() < VOCAB
    uniform = didi.Bundle(
        student=make_dit(vocab_size=VOCAB + 1, length=LENGTH, mask_id=None),
        autoregressive=network,
        tokenizer=tokenizer(),
    )
    loaded = didi.load(didi.save(uniform, tmp_path / "uniform"))
    assert loaded.process.name == "uniform"
    assert didi.generate(loaded, num_samples=2, role="autoregressive", prefix="number 7").tokens.max() < VOCAB
    other = didi.Bundle(student=make_dit(vocab_size=VOCAB, length=LENGTH), autoregressive=network)
    with pytest.raises(UsageError, match=r"the autoregressive of .* has 279 symbols and the bundle's mask id is 278"):
        didi.load(didi.save(other, tmp_path / "other"))


@pytest.mark.slow
def test_the_public_sizes_have_the_published_numbers_of_parameters():
    """The networks of the five public models are built without memory for their weights."""
    for width, depth, heads, parameters in (
        (768, 6, 12, 81_912_576), (768, 12, 12, 124_439_808), (1024, 24, 16, 354_823_168),
        (1280, 36, 20, 774_030_080), (1600, 48, 25, 1_557_611_200),
    ):  # fmt: skip
        config = AutoregressiveConfig(
            vocab_size=gpt2_layout.NUM_SYMBOLS, mask_id=None, begin_id=gpt2_layout.END_OF_TEXT, length=1024,
            hidden_size=width, num_blocks=depth, num_heads=heads, is_tied=True,
        )  # fmt: skip
        network = without_weights(lambda config=config: AutoregressiveLM(config))
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert all(parameter.is_meta for parameter in network.parameters())


def test_the_end_of_text_token_of_gpt2_is_its_begin_symbol():
    try:
        tokens = load_tokenizer("gpt2")
    except didi.DidiError as error:
        pytest.skip(str(error))
    assert tokens.token_to_id("<|endoftext|>") == gpt2_layout.END_OF_TEXT
    assert tokens.token_to_id(MASK) == gpt2_layout.NUM_SYMBOLS
