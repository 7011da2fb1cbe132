"""Invalid bodies and weights, full queues, and clients that disconnect or do not read: only their own requests fail.

Also access tokens, CORS headers, logs, metrics, and the files that the server sends.
"""

import json
import socket
import threading
import time

import httpx
import pytest

from didi.models.bundle import Bundle
from didi.serving import request_jobs
from didi.serving.page import STATIC

from .conftest import events_of, with_nan

LONG = {"nfe": 30, "sampler": "published"}
"""Fields of a request that takes a few seconds."""


def until(condition, seconds=10):
    """Wait until ``condition()`` is true; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def post_of(body):
    """An HTTP request as bytes."""
    content = json.dumps(body).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def engine_of(client):
    return client.app.state.server.engine


def metric(client, name):
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"null", b"[" * 100_000, b'{"seed": 1e999}'])
def test_an_invalid_body_is_refused(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


NOT_SENT_AS_JSON_OBJECTS = [
    (b"[1]", "application/json"),
    (b"{}", "text/plain"),
    (b"{}", None),
    (b"", "application/json"),
    (b"", None),
]


@pytest.mark.parametrize(("content", "content_type"), NOT_SENT_AS_JSON_OBJECTS)
def test_the_refusal_of_a_body_that_is_not_sent_as_a_json_object_names_the_header(client, content, content_type):
    """curl sends another content type by default."""
    headers = {} if content_type is None else {"content-type": content_type}
    answer = client.post("/v1/generate", content=content, headers=headers)
    message = "the body is a JSON object, sent with the header Content-Type: application/json; send one"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_a_huge_body_is_refused_before_it_is_read_as_json(client):
    for content in (json.dumps({"prompt": "x" * 2**20}).encode(), (b"x" * 2**16 for _ in range(40))):
        answer = client.post("/v1/generate", content=content)
        assert answer.status_code == 413
        assert "at most 1048576 bytes" in answer.json()["error"]["message"]


def test_unknown_paths_and_methods_have_errors_of_the_same_form(client):
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    wrong_method = client.get("/v1/generate")
    assert wrong_method.status_code == 405
    assert wrong_method.headers["allow"] == "POST"
    assert wrong_method.json()["error"]["message"] == "there is no route GET /v1/generate; /v1/generate has POST"
    unknown = client.post("/v1/chat/completions", json={})
    assert unknown.status_code == 404
    message = "there is no route POST /v1/chat/completions; /docs lists the routes"
    assert unknown.json()["error"]["message"] == message


def test_the_page_and_its_scripts_are_sent_with_their_content_types(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert client.get("/player.js").headers["content-type"].startswith("text/javascript")


@pytest.mark.slow
def test_requests_to_a_full_queue_are_refused_with_retry_after(toy, listening):
    server, url = listening({"toy": toy}, max_batch=1, max_queue=2)
    engine = server.config.app.state.server.engine
    with httpx.Client(base_url=url, timeout=20) as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/generate", json=LONG))) for _ in range(3)
        ]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: engine.num_waiting + len(engine.scheduler.running) == number + 1)
            until(lambda: engine.scheduler.running)
        for stream in (False, True):
            refused = client.post("/v1/generate", json={"stream": stream})
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "overloaded"
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3


def test_the_jobs_of_a_request_are_queued_all_or_none(client_of, toy):
    client = client_of({"toy": toy}, max_queue=3)
    body = {"prompt": [[1], [2], [3], [4]], "max_tokens": 2}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "a request has at most 3 prompts here; got 4: send fewer at once"
    assert engine_of(client).num_waiting == 0
    assert client.post("/v1/completions", json={**body, "prompt": body["prompt"][:3]}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_job_of_a_client_that_disconnects_is_cancelled(toy, listening, stream):
    server, url = listening({"toy": toy})
    engine = server.config.app.state.server.engine
    message = post_of({**LONG, "nfe": 300, "stream": stream})
    with socket.create_connection(url.removeprefix("http://").split(":")) as connection:
        connection.sendall(message)
        until(lambda: engine.scheduler.running)
    until(lambda: engine.scheduler.is_idle, seconds=3)
    with httpx.Client(base_url=url) as client:
        assert client.post("/v1/generate", json={"nfe": 2}).status_code == 200
        assert 'didi_failed_jobs_total{reason="Cancelled"} 1.0' in client.get("/metrics").text


def test_a_client_that_disconnects_before_its_body_is_sent_is_counted_as_disconnected(toy, listening):
    """It is counted with status 499, as all disconnected clients are, and not with 400, as an invalid body."""
    _, url = listening({"toy": toy})
    with socket.create_connection(url.removeprefix("http://").split(":")) as connection:
        connection.sendall(post_of({"nfe": 2})[:-1])
    with httpx.Client(base_url=url) as client:
        until(lambda: 'didi_requests_total{route="other",status="499"} 1.0' in client.get("/metrics").text)
        assert 'status="400"' not in client.get("/metrics").text


@pytest.mark.slow
def test_a_slow_reader_does_not_delay_other_clients(toy, listening, monkeypatch):
    monkeypatch.setattr(request_jobs, "MAX_UNREAD", 500)
    _, url = listening({"toy": toy}, timeout=30.0)
    message = post_of({"nfe": 1000, "stream": True, "sampler": "remasking", "num_samples": 8})
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = url.removeprefix("http://").split(":")
        slow.connect((host, int(port)))
        slow.sendall(message)
        with httpx.Client(base_url=url, timeout=5) as client:
            assert client.post("/v1/generate", json={"nfe": 2, "seed": 1}).status_code == 200
            until(lambda: 'didi_failed_jobs_total{reason="SlowReader"} 1.0' in client.get("/metrics").text)


def test_a_request_that_takes_too_long_ends(client_of, toy):
    client = client_of({"toy": toy}, timeout=0.2)
    answer = client.post("/v1/generate", json={**LONG, "nfe": 300})
    assert answer.status_code == 504
    assert "at most 0.2 s here" in answer.json()["error"]["message"]
    events = events_of(client.post("/v1/generate", json={**LONG, "nfe": 300, "stream": True}).text)
    assert events[-1][0] == "error"
    assert "at most 0.2 s here" in events[-1][1]["message"]


def test_weights_that_are_not_finite_give_no_text(client_of, toy, make_dit):
    client = client_of({"toy": toy, "good": Bundle(teacher=make_dit(vocab_size=40, length=16))})
    assert client.get("/readyz").status_code == 200
    with_nan(toy)  # while it is served
    answer = client.post("/v1/generate", json={"nfe": 4})
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]
    first, *moves, last = events_of(client.post("/v1/generate", json={"nfe": 4, "stream": True}).text)
    assert (first[0], last[0]) == ("start", "error")
    # A move that samples no position needs no logits.
    assert not any(name != "move" or move["positions"] for name, move in moves)
    assert client.get("/readyz").status_code == 503
    assert "weights or logits of toy are not finite" in client.get("/readyz").text
    assert client.get("/healthz").status_code == 200
    assert client.post("/v1/generate", json={"model": "good"}).status_code == 200


def test_a_server_with_broken_weights_is_never_ready(client_of, toy):
    assert client_of({"toy": with_nan(toy)}).get("/readyz").status_code == 503


def test_settings_that_overflow_the_logits_are_refused(client, unchecked):
    guidance = {"guidance_scale": 1e30, "gradient_clamp": 1e30, "tilted_fraction": 1.0}
    body = {"sampler": "guided", "guidance": guidance, "temperature": 0, "length": 16, "nfe": 2}
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 400
    assert "smaller guidance_scale" in answer.json()["error"]["message"]
    assert client.get("/readyz").status_code == 200


def test_an_unexpected_exception_is_a_500_without_details(client_of, toy, monkeypatch, caplog):
    client = client_of({"toy": toy})
    monkeypatch.setattr(toy.teacher, "features", lambda *_: {}["a secret"])
    answer = client.post("/v1/generate", json={})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    monkeypatch.undo()
    assert client.post("/v1/generate", json={}).status_code == 200


@pytest.mark.parametrize(
    ("authorization", "code", "message"),
    [
        (None, "missing_token", "the request has no Authorization header"),
        ("wr0ng", "malformed_authorization", "the Authorization header is not of the form Bearer TOKEN"),
        ("Basic wr0ng", "malformed_authorization", "the Authorization header is not of the form Bearer TOKEN"),
        ("Bearer", "malformed_authorization", "the Authorization header is not of the form Bearer TOKEN"),
        ("Bearer wr0ng", "wrong_token", "the bearer token is wrong"),
        ("Bearer secret wr0ng", "wrong_token", "the bearer token is wrong"),
    ],
)
def test_a_request_without_the_token_is_refused_with_the_cause(client_of, toy, authorization, code, message):
    client = client_of({"toy": toy}, token="secret")
    headers = {} if authorization is None else {"authorization": authorization}
    answers = [client.get(path, headers=headers) for path in ("/v1/models", "/metrics")]
    for answer in [*answers, client.post("/v1/generate", content=b"{", headers=headers)]:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "wr0ng" not in answer.text
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", code)
        assert error["message"].startswith(message)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_request_with_the_token_is_answered(client_of, toy, scheme):
    client = client_of({"toy": toy}, token="secret")
    assert client.get("/v1/models", headers={"authorization": f"{scheme} secret"}).status_code == 200
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_only_listed_origins_get_cors_headers(client_of, toy):
    origin = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in client_of({"toy": toy}).get("/healthz", headers=origin).headers
    listed = client_of({"toy": toy}, cors_origins=("https://example.org",), token="x")
    assert listed.get("/healthz", headers=origin).headers["access-control-allow-origin"] == "https://example.org"
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    assert listed.options("/v1/generate", headers=preflight).status_code == 200


@pytest.mark.slow
def test_prompts_are_logged_only_with_the_setting_logs_prompts(client_of, news, caplog):
    caplog.set_level("INFO", "didi.serving")
    for is_logged in (False, True):
        caplog.clear()
        client = client_of({"news": news}, logs_prompts=is_logged)
        client.post("/v1/generate", json={"prompt": "unmistakable", "length": 8, "nfe": 1})
        client.post("/v1/completions", json={"prompt": "unmistakable", "max_tokens": 2, "nfe": 1})
        entries = [record.fields for record in caplog.records if record.name == "didi.serving"]
        assert sum("unmistakable" in str(fields) for fields in entries) == 2 * is_logged
        assert [fields["status"] for fields in entries if "status" in fields] == [200, 200]


def test_metrics_count_requests_passes_and_tokens(client_of, toy):
    client = client_of({"toy": toy})
    client.post("/v1/generate", json={"nfe": 1, "num_samples": 3})
    client.post("/v1/generate", json={"nfe": 0})
    text = client.get("/metrics").text
    assert 'didi_requests_total{route="/v1/generate",status="200"} 1.0' in text
    assert 'didi_requests_total{route="/v1/generate",status="400"} 1.0' in text
    assert metric(client, "didi_tokens_total") == 48
    assert metric(client, "didi_shared_passes_total") == metric(client, "didi_shared_pass_rows_total") == 1


def test_the_files_of_the_page_have_less_than_50_kb():
    assert 0 < sum(file.stat().st_size for file in STATIC.iterdir()) < 50_000


def test_the_openapi_page_names_the_routes_and_their_fields(client):
    schema = client.get("/openapi.json").json()
    assert {"/v1/generate", "/v1/completions", "/v1/models", "/healthz", "/readyz", "/metrics"} <= set(schema["paths"])
    assert "nfe" in schema["components"]["schemas"]["GenerateRequest"]["properties"]
    assert client.get("/docs").status_code == 200
