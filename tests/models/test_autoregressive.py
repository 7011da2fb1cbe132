"""The autoregressive network: likelihoods, sampling, storage in a bundle, and what is refused."""

import json
import sys

import pytest
import torch

from didi.errors import DidiError, UsageError
from didi.models import autoregressive
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, load, save
from didi.models.networks import without_weights
from didi.sampling.generate import generate

MASK = 6


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = AutoregressiveConfig(vocab_size=7, mask_id=MASK, length=5, hidden_size=8, num_blocks=2, num_heads=2)
    network = AutoregressiveLM(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # far from uniform, so that errors are visible
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def all_sequences(length):
    return torch.cartesian_prod(*[torch.arange(MASK)] * length)


@torch.no_grad()
def test_the_probabilities_of_all_sequences_sum_to_one(network):
    total = network.nll(all_sequences(5)).double().sum(1).neg().exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_a_token_is_predicted_from_earlier_tokens_only(network):
    a, b = torch.tensor([[0, 1, 2, 3, 4]]), torch.tensor([[0, 1, 2, 5, 0]])
    torch.testing.assert_close(network.nll(a)[:, :3], network.nll(b)[:, :3])
    assert not torch.allclose(network.nll(a)[:, 3:], network.nll(b)[:, 3:])


@torch.no_grad()
def test_logits_with_the_cache_equal_those_without(network):
    from transformers import DynamicCache

    tokens = torch.tensor([[MASK, 1, 2, 3, 0], [MASK, 5, 4, 0, 1]])
    cache = DynamicCache()
    parts = [
        network.features(tokens[:, :2], cache),
        *(network.features(tokens[:, i : i + 1], cache) for i in (2, 3, 4)),
    ]
    torch.testing.assert_close(network.head(torch.cat(parts, 1)), network(tokens))


@pytest.mark.slow
@torch.no_grad()
def test_samples_follow_the_exact_distribution(network, chi_square):
    drawn = generate(Bundle(autoregressive=network), num_samples=8000, length=2, seed=3, batch_size=500)
    assert drawn.nfe == 2
    assert drawn.network_passes.unique().tolist() == [2]
    expected = network.nll(all_sequences(2)).double().sum(1).neg().exp()
    assert chi_square(drawn.tokens @ torch.tensor([MASK, 1]), expected) > 1e-3


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_size(network):
    bundle = Bundle(autoregressive=network)
    whole = generate(bundle, num_samples=6, seed=1, batch_size=6).tokens
    assert torch.equal(whole, generate(bundle, num_samples=6, seed=1, batch_size=1).tokens)
    assert not torch.equal(whole, generate(bundle, num_samples=6, seed=2).tokens)


def test_a_low_temperature_takes_the_most_probable_token(network):
    drawn = generate(Bundle(autoregressive=network), num_samples=3, temperature=1e-4).tokens
    begin = torch.full((3, 1), MASK)
    logits = network(torch.cat([begin, drawn[:, :-1]], 1))
    assert torch.equal(logits.argmax(-1), drawn)


def test_unsupported_settings_are_refused(network):
    bundle = Bundle(autoregressive=network)
    for wrong in ({"sampler": "guided"}, {"precision": "float32"}):
        with pytest.raises(UsageError, match="ancestral sampling in float64"):
            generate(bundle, **wrong)
    with pytest.raises(UsageError, match="needs a denoiser; the network of bundle unnamed is autoregressive"):
        bundle.denoiser()
    with pytest.raises(UsageError, match="hidden_size is a multiple of num_heads; got 8 and 3"):
        AutoregressiveConfig(vocab_size=7, mask_id=6, length=5, hidden_size=8, num_blocks=2, num_heads=3)
    for begin in ({}, {"begin_id": 7}, {"begin_id": -1}):
        with pytest.raises(UsageError, match="begins with begin_id, or else mask_id, one of 7 symbols; got"):
            AutoregressiveConfig(vocab_size=7, mask_id=None, length=5, **begin)


def test_a_bundle_without_the_newer_settings_is_read(network, tmp_path):
    """The defaults of newer settings are the values with which older networks were trained."""
    folder = save(Bundle(autoregressive=network), tmp_path / "bundle")
    file = folder / "autoregressive" / "config.json"
    later = ("begin_id", "is_tied", "inner_size", "activation", "layer_norm_epsilon")
    settings = json.loads(file.read_text())
    assert set(later) < set(settings)
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in later}))
    loaded = load(folder).autoregressive
    assert loaded.config == network.config
    assert loaded.begin_id == MASK
    tokens = torch.tensor([[0, 1, 2, 3, 4]])
    torch.testing.assert_close(loaded.nll(tokens), network.nll(tokens))


@pytest.fixture(scope="module")
def maskless():
    """A small network like the public GPT-2: tied, and its begin symbol is a token of texts."""
    torch.manual_seed(1)
    shape = {"length": 5, "hidden_size": 8, "num_blocks": 2, "num_heads": 2}
    network = AutoregressiveLM(AutoregressiveConfig(vocab_size=6, mask_id=None, begin_id=2, is_tied=True, **shape))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


@torch.no_grad()
def test_all_symbols_are_tokens_without_a_mask(maskless):
    assert maskless.nll(all_sequences(5)).double().sum(1).neg().exp().sum() == pytest.approx(1, abs=1e-4)
    pairs = torch.tensor([[2, 4], [2, 0]])
    assert torch.equal(maskless.likeliest(pairs)[:, 0], maskless(torch.tensor([[2], [2]]))[:, 0].argmax(-1))


def test_a_tied_head_is_stored_and_trained_once(maskless, tmp_path):
    names = list(maskless.state_dict())
    assert names == [name for name, _ in maskless.named_parameters()]
    assert not any("lm_head" in name for name in names)
    loaded = load(save(Bundle(autoregressive=maskless), tmp_path / "bundle")).autoregressive
    loaded.nll(torch.tensor([[1]])).sum().backward()
    # A symbol that is neither read nor predicted has a gradient through the head only.
    assert loaded.gpt2.transformer.wte.weight.grad[5].abs().sum() > 0
    with torch.no_grad():
        loaded.gpt2.transformer.wte.weight[5] += 1
    assert not torch.allclose(loaded(torch.tensor([[1]]))[..., 5], maskless(torch.tensor([[1]]))[..., 5])


@torch.no_grad()
def test_sequences_are_scored_in_parts_that_fit_in_memory(network, maskless, monkeypatch):
    tokens = all_sequences(5)[:11]
    for model in (network, maskless):
        expected, best, sizes = model.nll(tokens), model.likeliest(tokens), []
        head = type(model).head

        def recorded(self, features, head=head, sizes=sizes):
            sizes.append(len(features))
            return head(self, features)

        with monkeypatch.context() as patch:
            patch.setattr(type(model), "head", recorded)
            patch.setattr(autoregressive, "LOGITS_PER_PART", 4 * 5 * model.vocab_size + 1)
            torch.testing.assert_close(model.nll(tokens), expected)
            assert sizes == [4, 4, 3]
            assert torch.equal(model.likeliest(tokens), best)
            sizes.clear()
            with torch.enable_grad():
                model.nll(tokens)
            assert sizes == [11]


def test_a_saved_bundle_is_loaded_with_the_network(network, tmp_path):
    save(Bundle(autoregressive=network), tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    tokens = torch.tensor([[0, 1, 2, 3, 4]])
    torch.testing.assert_close(loaded.network().nll(tokens), network.nll(tokens))
    assert loaded.network("autoregressive") is loaded.autoregressive


def test_a_missing_library_is_reported_in_one_line(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DidiError, match=r"pip install '.\[eval\]'"):
        AutoregressiveLM(network.config)


def test_a_network_with_buffers_outside_the_state_dict_is_not_built_on_the_meta_device():
    def make(*, persistent):
        layer = torch.nn.Linear(2, 2)
        layer.register_buffer("mask", torch.ones(2), persistent=persistent)
        return layer

    assert without_weights(lambda: make(persistent=True)).mask.is_meta
    assert torch.equal(without_weights(lambda: make(persistent=False)).mask, torch.ones(2))
