"""Requests with random bodies are answered with samples or refused; none causes a server error."""

import json
import random

import pytest

from didi.models.bundle import Bundle
from didi.serving.schemas import CompletionRequest, GenerateRequest

from .conftest import events_of

GENERATE = {"prompt": "In", "length": 12, "nfe": 2, "seed": 1}
COMPLETION = {"prompt": "In", "max_tokens": 4, "nfe": 2, "seed": 1}
ODD = [
    None, True, False, 0, 1, -1, 2, 16, 17, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e300, float("nan"),
    float("inf"), "", "a", "[MASK]", "x [MASK] y", "\x00", "\ud800", "\u202e\U0001f600", "z" * 3000, "ancestral",
    "guided", "remasking", "first-hitting", "confidence", "published", "one-step", "greedy-tail", "float32", "cosine",
    "teacher", "student", "toy", "toy:teacher", [], [[]], [0], [1, 2, 3], [None] * 8, [8191], [-1], [[1], [2]],
    [[1], "a"], [1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0], ["a", "b"], {}, {"a": 1}, {"num_candidates": 2},
    {"guidance_scale": 1e30}, {"guidance_scale": float("nan")}, {"eta": 0.5}, {"eta": "x"},
    {"measure": "margin"}, {"mask_ratio": 0.5}, {"include_usage": True}, {"noise_std": 0.5},
]  # fmt: skip
FIELDS = {"/v1/generate": GenerateRequest, "/v1/completions": CompletionRequest}


def bodies(num, seed):
    """Paths and bodies: valid requests with some fields replaced, added or left out."""
    source = random.Random(seed)
    for _ in range(num):
        path, base = source.choice([("/v1/generate", GENERATE), ("/v1/completions", COMPLETION)])
        body = {**base, "stream": source.random() < 0.2}
        for _ in range(source.choice([0, 1, 1, 2, 3])):
            name = source.choice([*FIELDS[path].model_fields, "", "sead", "\udfff"])
            body[name] = source.choice(ODD)
        if source.random() < 0.2:
            body.pop(source.choice(sorted(body)))
        content = json.dumps(body).encode()
        if source.random() < 0.1:
            at = source.randrange(len(content))
            content = content[:at] + source.randbytes(source.randrange(4)) + content[at + source.randrange(5) :]
        yield path, content


@pytest.fixture
def fuzzed(client_of, news, make_dit, make_discriminator, unchecked):
    denoiser = make_dit(vocab_size=8192, length=16)
    bundle = Bundle(teacher=denoiser, discriminator=make_discriminator(denoiser), tokenizer=news.tokenizer)
    return client_of({"toy": bundle}, max_moves=64, max_body_bytes=2000)


def checked_statuses(client, num, seed):
    """The statuses of the responses to random bodies; each response is checked."""
    statuses = []
    for path, content in bodies(num, seed):
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        statuses.append(answer.status_code)
        assert answer.status_code in (200, 400, 404, 413), (path, content, answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"], (path, content)
            assert "\n" not in error["message"], (path, content)
        elif answer.headers["content-type"].startswith("text/event-stream"):
            assert "unexpected error" not in answer.text, (path, content)
            assert len(events_of(answer.text)) > 1
    assert client.get("/readyz").status_code == 200
    return statuses


def test_no_body_causes_a_server_error(fuzzed):
    statuses = checked_statuses(fuzzed, 60, seed=0)
    assert statuses.count(200) > 5
    assert statuses.count(400) > 20


@pytest.mark.slow
def test_none_of_10_000_bodies_causes_a_server_error(fuzzed):
    checked_statuses(fuzzed, 10_000, seed=1)
