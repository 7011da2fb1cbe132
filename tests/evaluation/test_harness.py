import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from didi.data.source import MarkovSource
from didi.errors import UsageError
from didi.evaluation.harness import HarnessModel
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle


def ask(*args):
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
    ((found, _),) = model.loglikelihood([ask("s3 s1", " s4 s1 s5")])
    assert found == pytest.approx(exact, rel=0.02)


@torch.no_grad()
def test_log_likelihood_of_an_autoregressive_network_is_exact(bundle):
    model = HarnessModel(bundle, "autoregressive")
    nll = bundle.autoregressive.nll(torch.tensor([[3, 1, 4, 1]]))[0]
    ((found, _),) = model.loglikelihood([ask("s3 s1 ", "s4 s1")])  # the space goes over to the continuation
    assert found == pytest.approx(-float(nll[2:].sum()), rel=1e-5)
    assert model.loglikelihood_rolling([ask("s3 s1 s4 s1")]) == [pytest.approx(-float(nll.sum()), rel=1e-5)]


def test_long_texts_are_scored_in_blocks_and_long_contexts_cut_on_the_left(bundle):
    model = HarnessModel(bundle, "autoregressive")
    words = [f"s{number}" for number in range(20)]
    blocks = [" ".join(words[begin : begin + 8]) for begin in (0, 8, 16)]
    (whole,) = model.loglikelihood_rolling([ask(" ".join(words))])
    assert whole == pytest.approx(sum(model.loglikelihood_rolling([ask(block) for block in blocks])), rel=1e-5)
    ((cut, _), (short, _)) = model.loglikelihood(
        [ask(" ".join(words[:-1]), " s19"), ask(" ".join(words[-8:-1]), " s19")]
    )
    assert cut == short


@pytest.mark.parametrize("role", ["teacher", "autoregressive"])
@torch.no_grad()
def test_greedy_is_what_the_likeliest_choices_write(bundle, role):
    model = HarnessModel(bundle, role, num_draws=1)
    found = [greedy for _, greedy in model.loglikelihood([ask("s3", f" s{number}") for number in range(32)])]
    assert sum(found) == 1
    best = found.index(True)
    pairs = [ask("s3", f" s{best} s{number}") for number in range(32)]
    if role == "autoregressive":
        assert sum(greedy for _, greedy in model.loglikelihood(pairs)) == 1


@torch.no_grad()
def test_a_network_conditioned_on_time_is_told_its_noise_level(make_dit, bundle):
    network = make_dit(vocab_size=33, length=8, scale=2.0, is_time_conditioned=True)
    told, features = [], network.features

    def watched(z, level, attention_mask=None):
        told.append((level, (z == 32).sum(1)))
        return features(z, level, attention_mask)

    network.features = watched
    model = HarnessModel(Bundle(teacher=network, tokenizer=bundle.tokenizer), "teacher", num_draws=400)
    model.loglikelihood([ask("s3 s1", " s4 s1 s5")])
    (level, num_masked), *greedy = told
    share = 1 - (-level.double()).exp()  # of masks, at the time that is told
    for n in (1, 2, 3):
        assert float(share[num_masked == n].mean()) == pytest.approx(n / 4, abs=0.06)  # the mean of Beta(n, 4 - n)
    # Greedy decoding has 3 of 5 positions masked, then 2, until a choice differs.
    for number, (level, num_masked) in enumerate(greedy):
        assert num_masked.tolist() == [3 - number]
        assert level.dtype == torch.float32
        assert float(1 - (-level.double()).exp()) == pytest.approx((3 - number) / 5, rel=1e-5)
    assert greedy


@torch.no_grad()
def test_what_a_network_is_told_decides_what_is_greedy(make_dit, bundle):
    network = make_dit(vocab_size=33, length=8, seed=3, scale=3.0, is_time_conditioned=True)
    model = HarnessModel(Bundle(teacher=network, tokenizer=bundle.tokenizer), "teacher", num_draws=1)
    differs = False
    for first in range(12):
        z = torch.tensor([[first, 32]])
        untold, told = (
            int(network(z, level)[0, 1, :32].argmax())
            for level in (None, -torch.tensor([0.5]).log())  # half is masked
        )
        found = [greedy for _, greedy in model.loglikelihood([ask(f"s{first}", f" s{k}") for k in {told, untold}])]
        assert sum(found) == 1
        assert model.loglikelihood([ask(f"s{first}", f" s{told}")])[0][1]
        differs = differs or told != untold
    assert differs  # None in place of the level would be seen


def test_generations_continue_the_context_and_stop(bundle):
    model = HarnessModel(bundle, "teacher", nfe=4)
    (free,) = model.generate_until([ask("s3 s1", {"max_gen_toks": 4})])
    words = free.split()
    assert len(words) == 4
    (stopped,) = model.generate_until([ask("s3 s1", {"max_gen_toks": 4, "until": ["never", words[2]]})])
    assert stopped == free.partition(words[2])[0] != free
    (long,) = model.generate_until([ask(" ".join(["s1"] * 20), {"max_gen_toks": 3, "until": "never"})])
    assert len(long.split()) == 3


def test_a_bundle_without_tokenizer_is_refused(make_dit):
    with pytest.raises(UsageError, match="mine has no tokenizer"):
        HarnessModel(Bundle(teacher=make_dit(), name="mine"))
