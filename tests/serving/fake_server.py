"""A server with the routes that the page uses; its texts are a function of the request."""

import json
import re
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from didi.serving.page import STATIC

WORDS = (
    "the",
    "minister",
    "said",
    "on",
    "Monday",
    "that",
    "a",
    "vote",
    "would",
    "follow",
    "in",
    "weeks",
    "of",
    "talks",
)
SAMPLERS = {"student": ["ancestral", "guided"], "teacher": ["ancestral", "confidence"], "autoregressive": ["ancestral"]}
PASS_MILLISECONDS = {"student": 12.5, "teacher": 12.5, "autoregressive": 4.0}
LENGTH = 24
TEXTS = []
"""Texts of the token ids; the id of a text is its index."""


def models():
    """The response of /v1/models: the model, and each of its networks."""
    shared = {"object": "model", "roles": list(SAMPLERS), "length": LENGTH, "takes_text": True}
    cards = [{"id": "tiny", "role": "student", "nfe": 4, "samplers": SAMPLERS["student"], **shared}]
    for role, samplers in SAMPLERS.items():
        nfe = LENGTH if role == "autoregressive" else 4 if role == "student" else 16
        cards.append({"id": f"tiny:{role}", "role": role, "nfe": nfe, "samplers": samplers, **shared})
    return {"object": "list", "data": cards}


def tokens_of(text):
    """One token per word, with the space before it."""
    return re.findall(r"\s*\S+", text)


def id_of(text):
    """The id of the token with a text, a new id for a new text; None for a position without text."""
    if text is not None and text not in TEXTS:
        TEXTS.append(text)
    return None if text is None else TEXTS.index(text)


def events(request):
    """The events of /v1/generate as (name, data)."""
    role, seed = request["role"], request["seed"]
    given = tokens_of(request.get("prompt") or "")
    if "token_ids" in request:
        given = [None if token_id is None else TEXTS[token_id] for token_id in request["token_ids"]]
    length = request.get("length") or LENGTH
    tokens = (given + [None] * length)[:length]
    free = [position for position, text in enumerate(tokens) if text is None]
    is_left_to_right = role == "autoregressive"
    nfe = length if is_left_to_right else request["nfe"]
    settings = {"model": request["model"], "role": role, "sampler": request.get("sampler", "ancestral"), "nfe": nfe}
    ids = [[id_of(text) for text in tokens]]
    yield "start", {**settings, "length": length, "seed": seed, "tokens": [tokens], "token_ids": ids}
    num_moves = len(free) if is_left_to_right else nfe
    for move in range(1, num_moves + 1):
        changed = [p for order, p in enumerate(free) if (order if is_left_to_right else 7 * p % num_moves) == move - 1]
        for position in changed:
            tokens[position] = " " + WORDS[(position + seed) % len(WORDS)]
        yield "move", {
            "sequence": 0, "move": move, "t": 1 - move / num_moves, "passes": move, "discriminator_passes": 0,
            "milliseconds": move * PASS_MILLISECONDS[role], "positions": changed,
            "token_ids": [id_of(tokens[position]) for position in changed],
            "texts": [tokens[position] for position in changed],
        }  # fmt: skip
        if request.get("prompt") == "breaks":
            yield "error", {"message": "logits are not finite"}
            return
    total = num_moves * PASS_MILLISECONDS[role]
    yield "end", {"sequence": 0, "text": "".join(tokens), "network_passes": num_moves, "milliseconds": total}


class Handler(SimpleHTTPRequestHandler):
    """Answers ``/v1/models`` and ``/v1/generate``, and sends the files of the page."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path != "/v1/models":
            return super().do_GET()
        return self.answer(200, models()) if self.is_allowed() else self.refuse()

    def is_allowed(self):
        token = self.server.token
        return token is None or self.headers["authorization"] == f"Bearer {token}"

    def refuse(self):
        code = "wrong_token" if "authorization" in self.headers else "missing_token"
        return self.answer(401, {"error": {"message": "the page shows its own message", "code": code}})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.is_allowed():
            return self.refuse()
        self.server.requests.append(request)
        if request.get("prompt") == "too long":
            return self.answer(400, {"error": {"message": "a prompt has at most 24 tokens here; this one has 30"}})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for name, data in events(request):
            self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        return None

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fake_server(token=None):
    """A running server with attributes ``address`` and ``requests``, the bodies of all requests for generation.

    Args:
        token: bearer token that requests need; None if they need none.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(STATIC)))
    server.token, server.requests, server.address = token, [], f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
