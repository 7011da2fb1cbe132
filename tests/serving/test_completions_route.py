"""``/v1/completions`` and ``/v1/models`` as OpenAI's client and lm-eval's ``local-completions`` use them."""

import json

import pytest

import didi
from didi.sampling.completion import planned
from didi.sampling.prompt import canvas_from_prompt
from didi.sampling.registry import samplers_of
from didi.serving.completion_text import CompletionText
from didi.serving.models import ServedModel
from didi.serving.requests import JobSpec

from .conftest import events_of, with_nan

PROMPT = "The prime minister said"


@pytest.fixture(scope="module")
def openai_client(client):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)


@pytest.fixture(scope="module")
def prompt_ids(news):
    return news.tokenizer.encode(PROMPT, add_special_tokens=False).ids


def expected(news, num_given, num_new, **options):
    """Text of the new tokens of samples of ``generate``."""
    out = didi.generate(news, prefix=PROMPT, length=num_given + num_new, **{"num_samples": 1, **options})
    return [news.tokenizer.decode(row[num_given:], skip_special_tokens=False) for row in out.tokens.tolist()]


@pytest.mark.slow
def test_completions_are_samples_of_generate(openai_client, news, prompt_ids):
    answer = openai_client.completions.create(model="news", prompt=PROMPT, max_tokens=20, n=2, seed=5)
    texts = [text.split("<|endoftext|>")[0] for text in expected(news, len(prompt_ids), 20, num_samples=2, seed=5)]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.prompt_tokens == len(prompt_ids)
    assert answer.usage.completion_tokens == 40
    assert {choice.finish_reason for choice in answer.choices} <= {"length", "stop"}


@pytest.mark.slow  # imports the package and uses a socket
def test_the_client_of_openai_reads_a_stream_from_a_socket(news, listening, prompt_ids):
    openai = pytest.importorskip("openai")
    _, url = listening({"news": news}, token="secret")
    body = {"model": "news", "prompt": PROMPT, "max_tokens": 20, "seed": 5}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        assert [card.id for card in client.models.list()] == ["news", "news:student", "news:teacher"]
        whole = client.completions.create(**body).choices[0].text
        parts = [part.choices[0].text for part in client.completions.create(**body, stream=True)]
        assert len(parts) > 2
        assert "".join(parts) == whole
        with pytest.raises(openai.BadRequestError, match="max_tokens lies in"):
            client.completions.create(**{**body, "max_tokens": 1000})
    unauthorized = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with unauthorized, pytest.raises(openai.AuthenticationError):
        unauthorized.models.list()
    assert whole == expected(news, len(prompt_ids), 20, seed=5)[0].split("<|endoftext|>")[0]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"n": 2}, {"stop": ["the", " a"]}, {"echo": True}, {"extra_body": {"nfe": 2}}])
def test_chunks_of_a_stream_join_to_the_whole_response(openai_client, fields):
    shared = {"model": "news:teacher", "prompt": [PROMPT, "In"], "max_tokens": 24, "seed": 1, **fields}
    whole = openai_client.completions.create(**shared)
    texts, reasons, parts = {}, {}, 0
    for part in openai_client.completions.create(**shared, stream=True, stream_options={"include_usage": True}):
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
            parts += 1
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert part.usage == whole.usage
    assert parts > len(texts)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in samplers_of("absorbing") if name != "one-step"])
def test_chunks_join_to_the_whole_text_with_every_sampler(client, sampler):
    body = {"prompt": PROMPT, "max_tokens": 24, "nfe": 12, "sampler": sampler, "seed": 3}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    events = client.post("/v1/completions", json={**body, "stream": True}).text.split("data: ")[1:-1]
    parts = [choice["text"] for event in events for choice in json.loads(event)["choices"]]
    assert "".join(parts) == whole


@pytest.mark.slow
def test_text_that_may_begin_a_stop_text_is_not_sent(client):
    body = {"prompt": PROMPT, "max_tokens": 12, "seed": 1}
    text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    events = client.post("/v1/completions", json={**body, "stop": text, "stream": True}).text.split("data: ")[1:-1]
    assert "".join(choice["text"] for event in events for choice in json.loads(event)["choices"]) == ""


@pytest.mark.slow
def test_lm_eval_gets_completions_and_a_refusal_of_log_probabilities(client, news, prompt_ids):
    """Its requests have token ids or texts in lists, temperature 0, a stop list and a seed."""
    body = {"model": "news", "max_tokens": 8, "temperature": 0, "stop": ["\n\n", "Question:"], "seed": 1234}
    answers = [client.post("/v1/completions", json={**body, "prompt": prompt}) for prompt in ([prompt_ids], [PROMPT])]
    assert [answer.status_code for answer in answers] == [200, 200]
    first, second = (answer.json()["choices"] for answer in answers)
    assert first == second
    (text,) = expected(news, len(prompt_ids), 8, seed=1234, temperature=0.0)
    assert first[0]["text"] == text.split("<|endoftext|>")[0]
    scored = client.post("/v1/completions", json={**body, "prompt": [prompt_ids], "logprobs": 1, "echo": True})
    assert scored.status_code == 400
    assert "logprobs is not supported" in scored.json()["error"]["message"]


@pytest.mark.slow
def test_a_completion_with_a_suffix_is_an_infill_of_generate(client, news):
    body = {"prompt": "The prime minister", "suffix": " in London.", "max_tokens": 6, "seed": 2}
    answer = client.post("/v1/completions", json=body).json()
    masks = " ".join(["[MASK]"] * 6)
    num_given = sum(len(news.tokenizer.encode(text).ids) for text in ("The prime minister", " in London."))
    infill = f"The prime minister {masks} in London."
    alone = didi.generate(news, num_samples=1, infill=infill, length=num_given + 6, seed=2)
    assert answer["usage"]["prompt_tokens"] == num_given
    assert alone.texts[0] == f"The prime minister{answer['choices'][0]['text']} in London."


def test_text_ends_before_a_stop_text_and_before_the_end_of_text(news):
    ids = news.tokenizer.encode(" one two<|endoftext|> three").ids
    plan = planned(news, canvas_from_prompt(news, len(ids)), indices=[0])
    spec = JobSpec(ServedModel("news", news), "student", "ancestral", 0, plan)
    plain, stopped, late = (CompletionText(spec, stops, echoes=False) for stops in ([], ["two"], ["two"]))
    assert (plain.finished(ids), plain.finish_reason) == (" one two", "stop")
    assert (stopped.finished(ids), stopped.finish_reason) == (" one ", "stop")
    # The first and the fourth token are known. Text that may begin the stop text is not sent.
    assert late.added([0, 3], [ids[0], ids[3]]) == " o"
    assert late.added([1, 2], ids[1:3]) == "ne "
    assert late.rest(ids) == ""


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_prompt_and_completion_join_where_words_are_tokens(client_of, stream):
    markov = didi.load("markov")
    client = client_of({"markov": markov})
    body = {"prompt": "s1 s2", "max_tokens": 4, "seed": 1, "stream": stream}
    (whole,) = didi.generate(markov, num_samples=1, prefix="s1 s2", length=6, seed=1).texts
    for echoed in (True, False):
        answer = client.post("/v1/completions", json={**body, "echo": echoed}).text
        parts = [json.loads(part) for part in (answer.split("data: ")[1:-1] if stream else [answer])]
        text = "".join(choice["text"] for part in parts for choice in part["choices"])
        assert (text if echoed else "s1 s2" + text) == whole


@pytest.mark.slow
def test_models_are_listed(openai_client):
    cards = {card.id: card for card in openai_client.models.list()}
    assert list(cards) == ["news", "news:student", "news:teacher"]
    assert cards["news"].role == "student"
    assert cards["news:teacher"].nfe == 16
    assert cards["news"].samplers[0] == "ancestral"
    assert "guided" in cards["news"].samplers
    assert cards["news"].length == 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 126}, "max_tokens lies in [1, 124] after 4 tokens of the prompt; got 126"),
        ({"max_tokens": 0}, "max_tokens lies in [1, 124]"),
        ({"prompt": "word " * 200}, "has at most 127 tokens here"),
        ({"prompt": []}, "the number of prompts times n lies in [1, 32]; got 0"),
        ({"n": 33}, "n lies in [1, 32]; got 33"),
        ({"prompt": ["a", "b"], "n": 17}, "the number of prompts times n lies in [1, 32]; got 34"),
        ({"best_of": 2}, "best_of must equal n, 1; got 2"),
        ({"presence_penalty": 1.0}, "presence_penalty must be 0; got 1.0"),
        ({"prompt": "a [MASK]"}, "a prompt has no [MASK]"),
        ({"prompt": [5, 9999]}, "a token id lies in"),
        ({"prompt": {"a": 1}}, "prompt.str: Input should be a valid string"),
        ({"max_token": 3}, "did you mean 'max_tokens'?"),
        ({"n": 0}, "n lies in [1, 32]; got 0"),
        ({"temperature": -0.5}, "temperature lies in [0, 1e+30]; got -0.5"),
    ],
)
def test_invalid_fields_are_refused(client, fields, message):
    answer = client.post("/v1/completions", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_stream_that_fails_ends_with_an_error(client_of, toy):
    client = client_of({"toy": with_nan(toy)})
    events = events_of(client.post("/v1/completions", json={"prompt": [1, 2], "max_tokens": 4, "stream": True}).text)
    assert "not finite" in events[-1][1]["error"]["message"]
