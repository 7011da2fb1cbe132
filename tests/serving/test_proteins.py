"""Models of proteins behind HTTP: texts are residues, without begin and end symbols."""

import pytest

import didi
from didi.data.protein import protein_tokenizer
from didi.models.bundle import Bundle
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.proteins import BEGIN_ID, EXCLUDED_IDS

from .conftest import events_of


@pytest.fixture(scope="module")
def proteins(randomise):
    shape = Esm2Config(hidden_size=32, num_blocks=2, num_heads=2, length=34, inner_size=64)
    return Bundle(teacher=randomise(Esm2(shape), seed=5, scale=1.5), tokenizer=protein_tokenizer(), name="proteins")


@pytest.fixture
def served(client_of, proteins):
    return client_of({"proteins": proteins})


@pytest.mark.parametrize(
    "fields",
    [
        {"length": 14, "num_samples": 3, "nfe": 4},
        {"nfe": 3},
        {"prompt": "MKT", "length": 20, "nfe": 4},
        {"infill": "MK[MASK][MASK]Y", "length": 9, "nfe": 2},
        {"sampler": "reparam", "length": 20, "nfe": 4, "num_samples": 2},
        {"sampler": "first-hitting", "length": 12},
    ],
)
def test_answers_are_the_residues_of_generate(served, proteins, fields):
    answer = served.post("/v1/generate", json={"seed": 3, **fields}).json()
    named = {("prefix" if name == "prompt" else name): value for name, value in fields.items()}
    alone = didi.generate(proteins, **{"num_samples": 1, "seed": 3, **named})
    assert [sequence["text"] for sequence in answer["sequences"]] == alone.texts
    assert [sequence["token_ids"] for sequence in answer["sequences"]] == alone.tokens[:, 1:-1].tolist()
    assert [sequence["network_passes"] for sequence in answer["sequences"]] == alone.network_passes.tolist()
    assert (answer["length"], answer["nfe"]) == (fields.get("length", 32), alone.nfe)


@pytest.mark.slow
def test_prompts_of_several_lengths_are_completed_as_by_generate(served, proteins):
    body = {"prompt": ["M", "MKT", "MKTAY"], "max_tokens": 9, "nfe": 4, "seed": 2}
    choices = served.post("/v1/completions", json=body).json()["choices"]
    for choice, prompt in zip(choices, body["prompt"], strict=True):
        alone = didi.generate(proteins, num_samples=1, prefix=prompt, length=len(prompt) + 9, nfe=4, seed=2)
        assert [prompt + choice["text"]] == alone.texts


def test_only_residues_are_sampled(served):
    sequences = served.post("/v1/generate", json={"num_samples": 32, "nfe": 8}).json()["sequences"]
    assert not {token_id for sequence in sequences for token_id in sequence["token_ids"]} & set(EXCLUDED_IDS)
    assert {len(sequence["text"]) for sequence in sequences} == {32}


def test_events_count_positions_from_the_first_residue(served):
    fields = {"prompt": "MK", "length": 10, "nfe": 4, "seed": 1, "stream": True}
    (_, start), *moves, (_, end) = events_of(served.post("/v1/generate", json=fields).text)
    assert start["tokens"] == [["M", "K", *[None] * 8]]
    shown = start["tokens"][0]
    for _, move in moves:
        for position, text in zip(move["positions"], move["texts"], strict=True):
            shown[position] = text
    assert "".join(shown) == end["text"]
    again = {"token_ids": [*start["token_ids"][0][:2], *[None] * 8], "nfe": 4, "seed": 1}
    assert served.post("/v1/generate", json=again).json()["sequences"][0]["text"] == end["text"]


def test_a_completion_counts_residues(served):
    body = {"prompt": "MKT", "max_tokens": 6, "echo": True, "suffix": "YY", "seed": 1}
    answer = served.post("/v1/completions", json=body).json()
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    text = answer["choices"][0]["text"]
    assert len(text) == 9
    assert text.startswith("MKT")
    events = served.post("/v1/completions", json={**body, "stream": True}).text
    assert events.count('"finish_reason":"length"') == 1


def test_the_length_that_is_listed_for_a_model_is_the_limit_of_a_request(served):
    (card, _) = served.get("/v1/models").json()["data"]
    assert card["length"] == 32
    assert served.post("/v1/generate", json={"length": 33}).status_code == 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": [BEGIN_ID, None]}, "is not the id of [MASK] or of a symbol that is no residue; got 0"),
        ({"prompt": "MK T"}, "a prompt is made of this tokenizer's words"),
        ({"prompt": "M" * 33}, "at most 32 tokens here; this one has 33"),
    ],
)
def test_invalid_proteins_are_refused(served, fields, message):
    answer = served.post("/v1/generate", json=fields)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
