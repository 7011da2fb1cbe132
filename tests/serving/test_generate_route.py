"""``/v1/generate`` returns the samples of ``didi.generate``, and its events describe every move."""

import json

import pytest

import didi
from didi.sampling.remasking import Remasking

from .conftest import events_of

PROMPT = "The prime minister said"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"nfe": 3, "length": 24, "num_samples": 2},
        {"prompt": PROMPT, "length": 40, "role": "teacher", "temperature": 0.8, "top_p": 0.95},
        {"infill": "The [MASK] [MASK] said on [MASK] that", "length": 16, "sampler": "confidence", "nfe": 2},
        {"sampler": "guided", "length": 16, "nfe": 4, "guidance": {"num_candidates": 2}},
        {"sampler": "remasking", "length": 16, "nfe": 4, "remask": {"eta": 0.5}},
        {"times": [1.0, 0.5, 0.0], "length": 16},
    ],
)
def test_answers_are_samples_of_generate(client, news, fields):
    answer = client.post("/v1/generate", json={"model": "news", "seed": 7, **fields}).json()
    named = {("prefix" if name == "prompt" else name): value for name, value in fields.items()}
    if "guidance" in named:
        named["guidance"] = didi.Guidance(**vars(news.guidance or didi.Guidance()) | named["guidance"])
    if "remask" in named:
        named["remask"] = Remasking(**named["remask"])
    if "times" in named:
        named["times"] = tuple(named["times"])
    alone = didi.generate(news, **{"num_samples": 1, "seed": 7, **named})
    assert [sequence["text"] for sequence in answer["sequences"]] == alone.texts
    assert [sequence["token_ids"] for sequence in answer["sequences"]] == alone.tokens.tolist()
    assert [sequence["network_passes"] for sequence in answer["sequences"]] == alone.network_passes.tolist()
    discriminator_passes = [sequence["discriminator_passes"] for sequence in answer["sequences"]]
    assert discriminator_passes == alone.discriminator_passes.tolist()
    assert (answer["nfe"], answer["sampler"], answer["seed"]) == (alone.nfe, alone.sampler, 7)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ancestral", "remasking", "guided", "first-hitting"])
def test_events_lead_from_the_first_state_to_the_last(client, news, sampler):
    fields = {"prompt": PROMPT, "length": 20, "nfe": 6, "num_samples": 2, "seed": 3, "sampler": sampler, "stream": True}
    answer = client.post("/v1/generate", json=fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first, start), *moves = events_of(answer.text)
    ends = moves[-2:]
    moves = [move for name, move in moves[:-2] if name == "move"]
    assert first == "start"
    assert (start["model"], start["role"], start["sampler"], start["seed"]) == ("news", "student", sampler, 3)
    assert start["length"] == 20 == len(start["tokens"][0])
    given_ids = news.tokenizer.encode(PROMPT, add_special_tokens=False).ids
    assert start["token_ids"] == [given_ids + [None] * (20 - len(given_ids))] * 2
    alone = didi.generate(news, num_samples=2, nfe=6, seed=3, prefix=PROMPT, length=20, sampler=sampler)
    shown = start["tokens"]
    ids = [[None] * 20, [None] * 20]
    for number, move in enumerate(moves):
        row = move["sequence"]
        assert (row, move["move"]) == (number % 2, number // 2 + 1)
        for position, token_id, text in zip(move["positions"], move["token_ids"], move["texts"], strict=True):
            shown[row][position], ids[row][position] = text, token_id
    assert ["".join(row) for row in shown] == alone.texts
    assert [row[len(given_ids) :] for row in ids] == [row[len(given_ids) :] for row in alone.tokens.tolist()]
    assert [move["passes"] for move in moves[-2:]] == alone.network_passes.tolist()
    assert [move["discriminator_passes"] for move in moves[-2:]] == alone.discriminator_passes.tolist()
    assert moves[-1]["t"] == 0.0 or sampler == "first-hitting"  # first-hitting has no time grid
    assert [(name, end["sequence"], end["text"]) for name, end in ends] == [
        ("end", row, alone.texts[row]) for row in range(2)
    ]
    assert [end["network_passes"] for _, end in ends] == alone.network_passes.tolist()


def test_given_tokens_are_kept(client, news):
    given = [17, None, 250, None, None, 9, None, None]
    answer = client.post("/v1/generate", json={"token_ids": given, "seed": 1}).json()
    (sequence,) = answer["sequences"]
    assert [sequence["token_ids"][position] for position in (0, 2, 5)] == [17, 250, 9]
    assert answer["length"] == 8


@pytest.mark.slow
def test_requests_without_seed_use_different_seeds_and_return_them(client):
    first, second = (client.post("/v1/generate", json={"length": 16}).json() for _ in range(2))
    assert first["seed"] != second["seed"]
    again = client.post("/v1/generate", json={"length": 16, "seed": first["seed"]}).json()
    assert again["sequences"] == first["sequences"]


def test_uniform_state_diffusion_shows_every_position_after_the_first_move(client_of):
    client = client_of({"udlm": didi.load("exact-udlm")})
    (_, start), (_, first), *_ = events_of(client.post("/v1/generate", json={"nfe": 3, "stream": True}).text)
    assert start["tokens"] == [[None] * start["length"]]
    assert first["positions"] == list(range(start["length"]))


REFUSED = [
    ({"nfe": 0}, "nfe lies in [1, 1024]; got 0"),
    ({"nfe": 5000}, "nfe lies in [1, 1024]; got 5000"),
    ({"times": [1.0, 0.4]}, "times fall from 1 to 0"),
    ({"length": 129}, "length lies in [1, 128]; got 129"),
    ({"num_samples": 33}, "num_samples lies in [1, 32]; got 33"),
    ({"sampler": "ancestrel"}, "did you mean 'ancestral'?"),
    ({"smapler": "ancestral"}, "there is no field 'smapler'; did you mean 'sampler'?"),
    ({"seed": "1"}, "seed: Input should be a valid integer; got '1'"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0; got -1"),
    ({"temperature": -1.0}, "temperature lies in [0, 1e+30]; got -1.0"),
    ({"top_p": 0.0}, "top_p lies in (0, 1]; got 0.0"),
    ({"role": "autoregressive"}, "has no autoregressive"),
    ({"prompt": "a", "infill": "[MASK]"}, "not both"),
    ({"prompt": "word " * 500}, "at most 128 tokens here"),
    ({"prompt": "x" * 70_000}, "at most 65536 characters here"),
    ({"prompt": "\ud800"}, "valid Unicode"),
    ({"token_ids": [8191]}, "is not the id of [MASK]"),
    ({"token_ids": [-1]}, "a token id lies in"),
    ({"token_ids": []}, "the number of token_ids lies in"),
    ({"sampler": "guided", "guidance": {"num_candidates": 10**6}}, "num_candidates lies in [1, 16]"),
    ({"sampler": "guided", "guidance": {"scale": 2}}, "guidance has the fields guidance_scale"),
    ({"sampler": "guided", "guidance": {"guidance_scale": "high"}}, "guidance_scale is a finite number"),
    ({"guidance": {"guidance_scale": 1}}, "ancestral sampling does not read guidance"),
    ({"precision": "float16"}, "precision: Input should be 'float64' or 'float32'"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_invalid_fields_are_refused_in_one_line(client, unchecked, fields, message):
    answer = client.post("/v1/generate", content=json.dumps(fields), headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.slow
def test_the_limit_on_moves_holds_for_every_grid(client_of, news):
    client = client_of({"news": news}, max_moves=4)
    for fields in ({"times": [1, 0.8, 0.6, 0.4, 0.2, 0]}, {}):  # without nfe, the model's own number of moves
        answer = client.post("/v1/generate", json={"length": 16, **fields})
        assert answer.status_code == 400
        assert "a request has at most 4 moves here; got" in answer.json()["error"]["message"]
    for fields in ({"nfe": 4}, {"times": [1, 0.5, 0]}, {"sampler": "first-hitting"}):  # at most a move for each token
        assert client.post("/v1/generate", json={"length": 16, **fields}).status_code == 200


def test_an_unknown_model_is_not_found(client):
    answer = client.post("/v1/generate", json={"model": "nws"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "did you mean 'news'?" in answer.json()["error"]["message"]


def test_a_role_that_is_not_that_of_the_model_is_refused(client):
    assert client.post("/v1/generate", json={"model": "news:teacher", "role": "student"}).status_code == 400
