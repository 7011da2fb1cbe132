"""Judges: scores of causal networks and exact chains, the registry, and names that are refused."""

import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from didi.data.markov import MarkovChain
from didi.errors import DidiError, UsageError
from didi.evaluation import judges
from didi.evaluation import perplexity as module
from didi.evaluation.judges import JUDGES, load_judge
from didi.evaluation.perplexity import (
    CausalJudge,
    ExactJudge,
    Judge,
    Scores,
    mean_sample_perplexity,
    perplexity,
)

transformers = pytest.importorskip("transformers")

WORDS = [f"w{i}" for i in range(20)]
TEXTS = ["w1 w2 w3", "", "w4", " ".join(WORDS), "w5 w5 w5 w5 w7 w1", "w9 w8"]
NO_TOKENS = torch.zeros(len(TEXTS), 1, dtype=torch.long)  # a causal judge reads texts only


def make_tokenizer(**special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def make_model(family="gpt2", context=32):
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=23, n_positions=context, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
        )
    else:
        sizes = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": None}
        kind = transformers.LlamaConfig if family == "llama" else transformers.Gemma2Config
        config = kind(max_position_embeddings=context, bos_token_id=0, eos_token_id=1, **sizes, **heads)
        if family == "gemma2":
            config.final_logit_softcapping = 0.05
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # the scores of tokens must differ, so that order and padding have an effect
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return model.eval()


def plain_nll(model, tokenizer, text, start_id):
    ids = [start_id, *tokenizer(text)["input_ids"]]
    if len(ids) == 1:
        return 0.0
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    return sum(float(F.cross_entropy(row, torch.tensor(target))) for row, target in zip(logits, ids[1:], strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_causal_judge_equals_a_plain_loop_of_cross_entropies(family):
    model, tokenizer = make_model(family), make_tokenizer(bos_token="<s>", eos_token="</s>")
    scores = CausalJudge(model, tokenizer, name="tiny").score(TEXTS, NO_TOKENS)
    assert scores.nll.tolist() == pytest.approx([plain_nll(model, tokenizer, text, 0) for text in TEXTS], rel=1e-5)
    assert scores.num_tokens.tolist() == [3, 0, 1, 20, 6, 2]
    assert scores.nll.dtype == torch.float64
    assert scores.num_truncated == 0


@pytest.mark.parametrize("max_batch_tokens", [1, 12, 10_000])
@pytest.mark.parametrize("head_rows", [1, 5, 128])
def test_scores_do_not_depend_on_batches_or_order(monkeypatch, max_batch_tokens, head_rows):
    model, tokenizer = make_model(), make_tokenizer(bos_token="<s>")
    expected = CausalJudge(model, tokenizer, name="tiny").score(TEXTS, NO_TOKENS)
    monkeypatch.setattr(module, "HEAD_ROWS", head_rows)
    order = [3, 1, 5, 0, 4, 2]
    judge = CausalJudge(model, tokenizer, name="tiny", max_batch_tokens=max_batch_tokens)
    scores = judge.score([TEXTS[i] for i in order], NO_TOKENS)
    torch.testing.assert_close(scores.nll, expected.nll[order], rtol=1e-5, atol=0)
    assert torch.equal(scores.num_tokens, expected.num_tokens[order])


def test_no_batch_exceeds_its_token_budget_and_every_text_is_in_one():
    lengths = [5, 0, 9, 1, 30, 7, 7, 2]
    batches = list(module._length_batches(lengths, 16))
    assert sorted(i for batch in batches for i in batch) == [0, 2, 3, 4, 5, 6, 7]
    assert all(len(batch) * max(lengths[i] for i in batch) <= 16 or len(batch) == 1 for batch in batches)


def test_logits_exist_for_a_few_real_positions_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "HEAD_ROWS", 4)
    judge = CausalJudge(make_model("llama"), make_tokenizer(bos_token="<s>"), name="tiny")
    rows = []
    judge._head.register_forward_hook(lambda head, inputs, output: rows.append(len(output)))
    judge.score(TEXTS, NO_TOKENS)
    assert max(rows) == 4
    assert sum(rows) == 32  # the tokens of TEXTS; padding never reaches the head


def test_without_bos_the_first_token_is_scored_after_eos():
    model, tokenizer = make_model(), make_tokenizer(eos_token="</s>")
    scores = CausalJudge(model, tokenizer, name="tiny").score(["w4 w6"], NO_TOKENS[:1])
    assert scores.nll.item() == pytest.approx(plain_nll(model, tokenizer, "w4 w6", 1), rel=1e-5)


def test_a_tokenizer_without_a_start_token_is_refused():
    with pytest.raises(UsageError, match="neither a BOS nor an EOS"):
        CausalJudge(make_model(), make_tokenizer(), name="tiny")


def test_truncation_to_the_context_is_counted():
    model, tokenizer = make_model(context=4), make_tokenizer(bos_token="<s>")
    scores = CausalJudge(model, tokenizer, name="tiny").score(TEXTS, NO_TOKENS)
    assert scores.num_tokens.tolist() == [3, 0, 1, 4, 4, 2]
    assert scores.num_truncated == 2
    assert scores.nll[3].item() == pytest.approx(plain_nll(model, tokenizer, "w0 w1 w2 w3", 0), rel=1e-5)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_sets_without_a_token_have_no_perplexity(texts):
    judge = CausalJudge(make_model(), make_tokenizer(bos_token="<s>"), name="tiny")
    scores = judge.score(texts, NO_TOKENS[: len(texts)])
    assert scores.num_tokens.tolist() == [0] * len(texts)
    assert torch.tensor([perplexity(scores), mean_sample_perplexity(scores)]).isnan().all()


def test_the_exact_judge_returns_the_likelihood_of_the_chain():
    chain = MarkovChain(num_symbols=8)
    tokens = chain.sample(256, 64, torch.Generator().manual_seed(0))
    scores = ExactJudge(chain).score([], tokens)
    assert torch.equal(scores.nll, -chain.log_likelihood(tokens))
    assert scores.num_tokens.tolist() == [64] * 256
    entropy_rate = -(chain.stationary[:, None] * chain.transition * chain.transition.log()).sum()
    assert perplexity(scores) == pytest.approx(float(entropy_rate.exp()), rel=0.05)


def test_the_exact_judge_refuses_the_mask_symbol():
    with pytest.raises(ValueError, match="the 8 symbols"):
        ExactJudge(MarkovChain(num_symbols=8)).score([], torch.tensor([[0, 8]]))


def test_corpus_perplexity_weighs_tokens_and_the_mean_weighs_samples():
    scores = Scores(torch.tensor([0.0, 30.0, 0.0], dtype=torch.float64), torch.tensor([30, 10, 0]))
    assert perplexity(scores) == pytest.approx(torch.tensor(30 / 40).exp().item())
    assert mean_sample_perplexity(scores) == pytest.approx((1 + torch.tensor(3.0).exp().item()) / 2)


def test_load_judge_returns_exact_judges_and_the_model_of_a_folder(tmp_path, capfd):
    model, tokenizer = make_model("llama"), make_tokenizer(bos_token="<s>")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    judges = [load_judge("markov"), load_judge(str(tmp_path)), load_judge("exact")]
    assert all(isinstance(judge, Judge) for judge in judges)
    assert [judge.name for judge in judges] == ["markov", str(tmp_path), "exact"]
    assert [judge.chain.num_symbols for judge in judges if isinstance(judge, ExactJudge)] == [32, 4]
    expected = CausalJudge(model, tokenizer, name="tiny").score(TEXTS, NO_TOKENS)
    assert torch.equal(judges[1].score(TEXTS, NO_TOKENS).nll, expected.nll)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A stand-in of transformers, the model that it loads, and the list of the GGUF files that it was given."""
    for name, content in (("one-0", b"GGUF"), ("two-0", b"-end")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"model.gguf.{name}").write_bytes(content)
    model, tokenizer = make_model("llama"), make_tokenizer(bos_token="<s>")
    loads = []

    def from_pretrained(loaded, folder, gguf_file):
        loads.append((Path(folder) / gguf_file).read_bytes())
        return loaded

    fake = ModuleType("transformers")
    fake.AutoModelForCausalLM = SimpleNamespace(from_pretrained=lambda *a, **k: from_pretrained(model, *a, **k))
    fake.AutoTokenizer = SimpleNamespace(from_pretrained=lambda *a, **k: from_pretrained(tokenizer, *a, **k))
    monkeypatch.setattr(judges, "fetch", lambda name: tmp_path / f"{name}-0")
    return fake, model, loads


def test_the_gguf_judge_is_converted_once(tmp_path, gguf):
    fake, model, loads = gguf
    folders = [judges._gguf_folder(["one", "two"], fake) for _ in range(2)]
    assert folders == [tmp_path / "one-0-safetensors"] * 2
    assert loads == [b"GGUF-end"] * 2  # model and tokenizer, the first time only
    copy = transformers.AutoModelForCausalLM.from_pretrained(folders[0])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in copy.state_dict().items())


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_damaged_copy_of_the_gguf_judge_is_made_again(gguf, file, is_cut):
    fake, _, loads = gguf
    path = judges._gguf_folder(["one"], fake) / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] if is_cut else whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    judges._gguf_folder(["one"], fake)
    assert path.read_bytes() == whole
    assert loads == [b"GGUF"] * 4


@pytest.mark.parametrize(
    ("name", "assets"),
    [("smollm2-135m", ["smollm2-135m"]), ("gemma3-270m", [f"gemma3-270m-part{n}" for n in (1, 2, 3, 4)])],
)
def test_the_judges_of_the_registry_read_their_assets(monkeypatch, tmp_path, name, assets):
    read = []
    monkeypatch.setattr(judges, "_gguf_folder", lambda assets, transformers: read.extend(assets) or tmp_path)
    with pytest.raises(DidiError):  # the folder has no model
        load_judge(name)
    assert read == assets


@pytest.mark.parametrize("name", ["no such judge", "/no/such/folder"])
def test_a_name_that_cannot_be_a_model_is_refused_in_one_line(name):
    with pytest.raises(
        UsageError, match=r"^no judge .* known are 'markov', 'exact', 'smollm2-135m', 'gemma3-270m'"
    ) as caught:
        load_judge(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "nearest"), [("smollm2-135", "smollm2-135m"), ("Markov", "markov")])
def test_a_name_that_is_nearly_that_of_a_judge_is_refused_with_the_nearest(name, nearest, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # nothing is loaded
    known = "markov, exact, smollm2-135m, gemma3-270m"
    message = rf"^a judge is one of {known}, a folder .* got '{name}'; did you mean '{nearest}'\?$"
    with pytest.raises(UsageError, match=message):
        load_judge(name)


def test_a_folder_named_like_a_judge_is_a_folder(tmp_path, monkeypatch):
    make_model("llama").save_pretrained(tmp_path / "smollm2-135")
    make_tokenizer(bos_token="<s>").save_pretrained(tmp_path / "smollm2-135")
    monkeypatch.chdir(tmp_path)
    assert load_judge("smollm2-135").name == "smollm2-135"


def test_an_entry_of_the_registry_adds_a_judge(monkeypatch):
    devices = []
    monkeypatch.setitem(
        JUDGES, "added", lambda device: devices.append(device) or ExactJudge(MarkovChain(num_symbols=8))
    )
    assert load_judge("added", device="meta").chain.num_symbols == 8
    assert devices == ["meta"]


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DidiError, match="'no-such-organisation/model' could not be loaded") as caught:
        load_judge("no-such-organisation/model")
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_reported_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DidiError, match="could not be loaded") as caught:
        load_judge(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DidiError, match=r"pip install '.\[eval\]'"):
        load_judge("gpt2")


@pytest.mark.slow
def test_evaluation_imports_neither_transformers_nor_matplotlib():
    code = "import sys, didi.evaluation.report; sys.exit(bool({'transformers', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(("name", "of_loop"), [("smollm2-135m", 28.53), ("gemma3-270m", 1.1)])
def test_the_real_judge_prefers_news_to_the_same_words_shuffled(capfd, name, of_loop):
    text = (
        "The president said on Tuesday that the government would publish its new budget next week, after months of "
        "talks with the opposition. Critics argue that the plan does not do enough to help poorer families, while "
        "business leaders have welcomed the proposed tax cuts."
    )
    words = text.split()
    shuffled = " ".join(random.Random(0).sample(words, len(words)))
    judge = load_judge(name)
    scores = judge.score([text, shuffled, "the " * 300], torch.zeros(3, 1, dtype=torch.long))
    real, shuffled, loop = (scores.nll / scores.num_tokens).exp().tolist()
    assert real < 40 < 400 < shuffled
    # As recorded with the asset. Repetition has a low perplexity, so entropy is reported beside it.
    assert loop == pytest.approx(of_loop, abs=0.1)
    assert capfd.readouterr().out == ""
