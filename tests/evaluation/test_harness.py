"""The model for lm-evaluation-harness: log-likelihoods, greedy flags and generations."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from didi.data.source import MarkovSource
from didi.data.text import EOS, MASK, train_tokenizer
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.evaluation import harness
from didi.evaluation.conditional import Continuation, are_greedy, log_likelihoods
from didi.evaluation.harness import HarnessModel
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.sampling.options import SamplingOptions


def request(*args):
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def bundle(make_dit):
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=33, mask_id=32, length=8, hidden_size=8, num_blocks=1, num_heads=2)
    teacher = make_dit(vocab_size=33, length=8, scale=2.0)
    return Bundle(
        teacher=teacher, autoregressive=AutoregressiveLM(shape).eval(), tokenizer=MarkovSource(8, 0).tokenizer
    )


@torch.no_grad()
def test_log_likelihood_of_a_denoiser_is_its_conditional_nelbo(bundle):
    x0 = torch.tensor([[3, 1, 4, 1, 5]])
    exact = 0.0
    for n in range(1, 4):  # masks of n of the last three tokens
        for chosen in itertools.combinations((2, 3, 4), n):
            z = x0.clone()
            z[:, list(chosen)] = 32
            log_probs = bundle.teacher(z, None)[0, :, :32].log_softmax(-1)
            exact += float(log_probs[list(chosen), x0[0, list(chosen)]].sum()) / n / math.comb(3, n)
    model = HarnessModel(bundle, "teacher", num_draws=6000)
    ((value, _),) = model.loglikelihood([request("s3 s1", " s4 s1 s5")])
    assert value == pytest.approx(exact, rel=0.02)


@torch.no_grad()
def test_log_likelihood_of_an_autoregressive_network_is_exact(bundle):
    model = HarnessModel(bundle, "autoregressive")
    nll = bundle.autoregressive.nll(torch.tensor([[3, 1, 4, 1]]))[0]
    ((value, _),) = model.loglikelihood([request("s3 s1 ", "s4 s1")])  # the last space is moved to the continuation
    assert value == pytest.approx(-float(nll[2:].sum()), rel=1e-5)
    assert model.loglikelihood_rolling([request("s3 s1 s4 s1")]) == [pytest.approx(-float(nll.sum()), rel=1e-5)]


def test_long_texts_are_scored_in_blocks_and_long_contexts_cut_on_the_left(bundle):
    model = HarnessModel(bundle, "autoregressive")
    words = [f"s{number}" for number in range(20)]
    blocks = [" ".join(words[begin : begin + 8]) for begin in (0, 8, 16)]
    (whole,) = model.loglikelihood_rolling([request(" ".join(words))])
    assert whole == pytest.approx(sum(model.loglikelihood_rolling([request(block) for block in blocks])), rel=1e-5)
    ((cut, _), (short, _)) = model.loglikelihood(
        [request(" ".join(words[:-1]), " s19"), request(" ".join(words[-8:-1]), " s19")]
    )
    assert cut == pytest.approx(short, rel=1e-6)


@pytest.mark.parametrize("role", ["teacher", "autoregressive"])
@torch.no_grad()
def test_greedy_continuations_are_the_most_probable_choices(bundle, role):
    model = HarnessModel(bundle, role, num_draws=1)
    greedy_flags = [greedy for _, greedy in model.loglikelihood([request("s3", f" s{number}") for number in range(32)])]
    assert sum(greedy_flags) == 1
    best = greedy_flags.index(True)
    if role == "teacher":
        assert best == int(bundle.teacher(torch.tensor([[3, 32]]), None)[0, 1, :32].argmax())
        return
    pairs_of_tokens = torch.tensor([[3, number] for number in range(32)])
    assert best == int(bundle.autoregressive.nll(pairs_of_tokens)[:, 1].argmin())
    pairs = [request("s3", f" s{best} s{number}") for number in range(32)]
    assert sum(greedy for _, greedy in model.loglikelihood(pairs)) == 1


@torch.no_grad()
def test_a_time_conditioned_network_gets_the_noise_level_of_its_masks(make_dit, bundle):
    network = make_dit(vocab_size=33, length=8, scale=2.0, is_time_conditioned=True)
    passes, features = [], network.features

    def recording(z, level, attention_mask=None):
        passes.append((level, (z == 32).sum(1)))
        return features(z, level, attention_mask)

    network.features = recording
    model = HarnessModel(Bundle(teacher=network, tokenizer=bundle.tokenizer), "teacher", num_draws=400)
    model.loglikelihood([request("s3 s1", " s4 s1 s5")])
    (level, num_masked), *greedy = passes
    share = 1 - (-level.double()).exp()  # the expected share of masks at the noise level
    for n in (1, 2, 3):
        assert float(share[num_masked == n].mean()) == pytest.approx(n / 4, abs=0.06)  # the mean of Beta(n, 4 - n)
    # Greedy decoding has 3 of 5 positions masked, then 2, until a choice differs.
    for number, (level, num_masked) in enumerate(greedy):
        assert num_masked.tolist() == [3 - number]
        assert level.dtype == torch.float32
        assert float(1 - (-level.double()).exp()) == pytest.approx((3 - number) / 5, rel=1e-5)
    assert greedy


@pytest.mark.slow
@torch.no_grad()
def test_greedy_decoding_depends_on_the_noise_level(make_dit, bundle):
    network = make_dit(vocab_size=33, length=8, seed=3, scale=3.0, is_time_conditioned=True)
    model = HarnessModel(Bundle(teacher=network, tokenizer=bundle.tokenizer), "teacher", num_draws=1)
    differs = False
    for first in range(12):
        z = torch.tensor([[first, 32]])
        without_level, with_level = (
            int(network(z, level)[0, 1, :32].argmax())
            for level in (None, -torch.tensor([0.5]).log())  # half is masked
        )
        greedy_flags = [
            greedy
            for _, greedy in model.loglikelihood([request(f"s{first}", f" s{k}") for k in {with_level, without_level}])
        ]
        assert sum(greedy_flags) == 1
        assert model.loglikelihood([request(f"s{first}", f" s{with_level}")])[0][1]
        differs = differs or with_level != without_level
    assert differs  # so that None in place of the level would fail this test


def test_generations_have_the_default_number_of_moves_of_the_bundle_unless_one_is_set(bundle, monkeypatch):
    moves = []
    monkeypatch.setattr(harness, "completed", lambda *_, nfe, **__: moves.append(nfe) or torch.zeros(1, 32).long())
    for options in ({}, {"nfe": 4}):
        HarnessModel(bundle, "teacher", **options).generate_until([request("s3 s1", {"max_gen_toks": 4})])
    assert moves == [None, 4]


def test_generations_continue_the_context_and_stop(bundle):
    model = HarnessModel(bundle, "teacher", nfe=4)
    (free,) = model.generate_until([request("s3 s1", {"max_gen_toks": 4})])
    words = free.split()
    assert len(words) == 4
    (stopped,) = model.generate_until([request("s3 s1", {"max_gen_toks": 4, "until": ["never", words[2]]})])
    assert stopped == free.partition(words[2])[0] != free
    (long,) = model.generate_until([request(" ".join(["s1"] * 20), {"max_gen_toks": 3, "until": "never"})])
    assert len(long.split()) == 3


def test_a_bundle_without_tokenizer_is_refused(make_dit):
    with pytest.raises(UsageError, match="mine has no tokenizer"):
        HarnessModel(Bundle(teacher=make_dit(), name="mine"))


# Special tokens and unknown words


@pytest.fixture(scope="module")
def text_bundle(make_dit):
    documents = [f"The {animal} number {number} sat on the mat." for number in range(40) for animal in ("cat", "dog")]
    tokenizer = train_tokenizer(documents, 300)
    shape = AutoregressiveConfig(vocab_size=300, mask_id=299, length=64, hidden_size=8, num_blocks=1, num_heads=2)
    teacher = make_dit(vocab_size=300, length=64)
    return Bundle(teacher=teacher, autoregressive=AutoregressiveLM(shape).eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("special", [MASK, EOS])
def test_the_name_of_a_special_token_in_a_request_is_text(text_bundle, special):
    model = HarnessModel(text_bundle, "autoregressive", nfe=4)
    text = f" sat {special} on"
    special_id = text_bundle.tokenizer.token_to_id(special)
    assert special_id in text_bundle.tokenizer.encode(text).ids
    ids = model._encode(text)
    assert special_id not in ids
    assert text_bundle.tokenizer.decode(ids, skip_special_tokens=False) == text
    ((value, _),) = model.loglikelihood([request("The cat", text)])
    tokens = torch.tensor([model._encode(f"The cat{text}")])
    num_given = len(model._encode("The cat"))
    assert value == pytest.approx(
        -float(text_bundle.autoregressive.nll(tokens)[0, num_given:].sum().detach()), rel=1e-5
    )
    assert math.isfinite(model.loglikelihood_rolling([request(text)])[0])
    for role in ("teacher", "autoregressive"):
        (written,) = HarnessModel(text_bundle, role, nfe=4).generate_until([request(text, {"max_gen_toks": 3})])
        assert len(text_bundle.tokenizer.encode(written).ids) >= 1


def test_a_word_that_a_tokenizer_lacks_is_refused(bundle):
    with pytest.raises(UsageError, match=r"made of the tokenizer's words .*; got 'hello'; choose a model of text"):
        HarnessModel(bundle, "teacher").loglikelihood_rolling([request("hello")])


# Empty, long and unusual requests


@pytest.mark.parametrize("role", ["teacher", "autoregressive"])
def test_an_empty_text_has_log_likelihood_0(bundle, role):
    model = HarnessModel(bundle, role)
    values = model.loglikelihood_rolling([request(""), request("s3"), request("")])
    assert values[0] == values[2] == 0.0
    assert type(values[0]) is float
    assert values[1] < 0
    assert model.loglikelihood([request("s3", ""), request("", "")]) == [(0.0, True)] * 2
    assert model.loglikelihood([]) == model.loglikelihood_rolling([]) == model.generate_until([]) == []


def test_an_empty_stop_string_stops_nothing(bundle):
    model = HarnessModel(bundle, "teacher", nfe=4)
    settings = [{"max_gen_toks": 4} | more for more in ({}, {"until": ""}, {"until": [""]}, {"until": []})]
    texts = [model.generate_until([request("s3 s1", each)])[0] for each in settings]
    assert len(set(texts)) == 1
    word = texts[0].split()[1]
    (stopped,) = model.generate_until([request("s3 s1", {"max_gen_toks": 4, "until": ["", word]})])
    assert stopped == texts[0].partition(word)[0]


@pytest.mark.parametrize("max_new", [0, -3])
def test_without_new_tokens_the_generation_is_empty(bundle, max_new):
    for role in ("teacher", "autoregressive"):
        assert HarnessModel(bundle, role, nfe=2).generate_until([request("s3 s1", {"max_gen_toks": max_new})]) == [""]


@pytest.mark.parametrize("num_words", [8, 9, 16, 21])
@torch.no_grad()
def test_a_continuation_past_the_context_is_scored_in_blocks(bundle, num_words):
    words = [f"s{number}" for number in range(num_words)]
    model = HarnessModel(bundle, "autoregressive")
    ((value, _),) = model.loglikelihood([request("s30 s31 s30", " " + " ".join(words))])
    first = (num_words - 1) % 8 + 1  # the first block has the tokens that are left over, and as much context as fits
    tokens = torch.tensor([[30, 31, 30, *range(first)]])[:, -8:]
    nll = float(bundle.autoregressive.nll(tokens)[0, -first:].double().sum())
    for begin in range(first, num_words, 8):
        nll += float(bundle.autoregressive.nll(torch.arange(begin, begin + 8)[None]).double().sum())
    assert value == pytest.approx(-nll, rel=1e-5)
    ((bound, _),) = HarnessModel(bundle, "teacher").loglikelihood([request("s30 s31 s30", " " + " ".join(words))])
    assert bound < 0


def test_generations_use_the_network_of_the_role(bundle):
    model = HarnessModel(bundle, "autoregressive", options=SamplingOptions(temperature=0.5))
    assert model.options == SamplingOptions(role="autoregressive", temperature=0.5)


# Batches


def requests_of(number, length=8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        num_given, num_new = torch.randint(1, length // 2 + 1, (2,), generator=generator).tolist()
        yield torch.randint(32, (num_given + num_new,), generator=generator).tolist(), num_given


@pytest.mark.slow
@pytest.mark.parametrize("role", ["teacher", "autoregressive", "time-conditioned"])
def test_a_batch_changes_nothing_but_rounding(make_dit, bundle, role):
    timed = make_dit(vocab_size=33, length=8, scale=2.0, is_time_conditioned=True)
    network = {"time-conditioned": timed}.get(role) or bundle.network(role)
    continuations = [Continuation(*each, (number,)) for number, each in enumerate(requests_of(12))]
    continuations += [*continuations[:3], Continuation([1, 2], 2)]
    options = {"num_draws": 5, "seed": 3}
    together = log_likelihoods(network, bundle.process, continuations, **options)
    alone = [log_likelihoods(network, bundle.process, [each], **options)[0] for each in continuations]
    small = log_likelihoods(network, bundle.process, continuations, max_batch_tokens=1, **options)
    assert torch.allclose(together, torch.stack(alone), rtol=1e-5)
    assert torch.allclose(together, small, rtol=1e-5)
    assert together[-1] == 0
    greedy = are_greedy(network, bundle.process, continuations)
    assert torch.equal(greedy, torch.stack([are_greedy(network, bundle.process, [each])[0] for each in continuations]))
    assert are_greedy(network, bundle.process, [Continuation([3, token], 1) for token in range(32)]).sum() == 1


@pytest.mark.slow
@pytest.mark.parametrize("role", ["teacher", "autoregressive"])
def test_64_requests_take_at_most_a_quarter_of_the_passes_of_single_requests(bundle, role, monkeypatch):
    model = HarnessModel(bundle, role, num_draws=4, nfe=4)
    module, passes = bundle.network(role), []
    inner = module.gpt2.transformer if role == "autoregressive" else module.output_layer
    handle = inner.register_forward_hook(lambda *_: passes.append(1))
    likelihood_requests = [
        request(" ".join(f"s{token}" for token in ids[:num_given]), "".join(f" s{token}" for token in ids[num_given:]))
        for ids, num_given in requests_of(64)
    ]
    prompts = [request(each.args[0], {"max_gen_toks": 3}) for each in likelihood_requests]
    counts = {}
    for name, method, requests in (
        ("loglikelihood", model.loglikelihood, likelihood_requests),
        ("rolling", model.loglikelihood_rolling, [request("".join(each.args)) for each in likelihood_requests]),
        ("generate", model.generate_until, prompts),
    ):
        passes.clear()
        together = method(requests)
        num_together = len(passes)
        passes.clear()
        for each in requests[:8]:
            method([each])
        counts[name] = num_together, 8 * len(passes)
        assert len(together) == 64
    handle.remove()
    assert all(4 * each <= other for each, other in counts.values()), counts


@pytest.mark.slow
def test_a_generation_does_not_depend_on_its_batch(bundle):
    requests = [request(" ".join(["s3"] * number), {"max_gen_toks": 3}) for number in (1, 2, 2, 5, 1)]
    for role in ("teacher", "autoregressive"):
        whole, split = (
            HarnessModel(bundle, role, nfe=3, options=SamplingOptions(batch_size=size)).generate_until(requests)
            for size in (32, 1)
        )
        assert whole == split
        assert all(len(text.split()) == 3 for text in whole)


def test_greedy_decoding_needs_masks(make_dit, bundle):
    network = make_dit(vocab_size=33, length=8, mask_id=None, is_time_conditioned=True)
    uniform = Bundle(teacher=network, tokenizer=bundle.tokenizer, process=Uniform(33))
    with pytest.raises(UsageError, match="greedy decoding reveals masks, and uniform diffusion has none"):
        HarnessModel(uniform, "teacher").loglikelihood([request("s3", " s4")])
    assert HarnessModel(uniform, "teacher", num_draws=4).loglikelihood_rolling([request("s3 s4")])[0] < 0
