"""``didi serve`` as a process: flags, logs, signals; many streams at once."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import didi
from didi.apps import serve
from didi.errors import DidiError, UsageError
from didi.serving import server
from didi.serving.settings import GRACE

from .conftest import events_of


@pytest.fixture
def process():
    """A function that starts a server and returns its process, address, log lines, and the thread that reads them."""
    started = []

    def start(*words):
        command = [sys.executable, "-m", "didi", "serve", *words, "--port", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        log = []
        for line in program.stderr:
            log.append(line)
            if match := re.search(r"running on (http://[\d.]+:\d+)", line):
                break
        reader = threading.Thread(target=lambda: log.extend(program.stderr), daemon=True)
        reader.start()
        started.append((program, reader))
        return program, match[1], log, reader

    yield start
    for program, reader in started:
        program.kill()
        program.wait()
        reader.join()
        program.stderr.close()


@pytest.mark.slow
def test_sigterm_lets_streams_end_and_refuses_new_requests(process):
    program, url, log, reader = process("exact", "--drain", "120", "--max-batch", "1")
    body = {"sampler": "published", "nfe": 1000, "num_samples": 4, "seed": 1}
    expected = httpx.post(f"{url}/v1/generate", json=body, timeout=120).json()["sequences"]
    answers = {}

    def ask(stream):
        answers[stream] = httpx.post(f"{url}/v1/generate", json={**body, "stream": stream}, timeout=120)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    while "didi_waiting_jobs 1.0" not in httpx.get(f"{url}/metrics").text:  # one runs, one waits
        time.sleep(0.01)
    program.send_signal(signal.SIGTERM)
    with contextlib.suppress(httpx.TransportError):  # the server closes its socket soon after the signal
        while True:
            httpx.get(f"{url}/healthz")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
    assert program.poll() is None
    for thread in threads:
        thread.join()
    assert program.wait(10) == 0
    assert answers[False].json()["sequences"] == expected
    ends = [data["text"] for name, data in events_of(answers[True].text) if name == "end"]
    assert ends == [sequence["text"] for sequence in expected]
    reader.join()
    records = [json.loads(line) for line in log[1:]]  # the first line is not JSON
    assert {"request", "Finished server process"} <= {re.sub(r" \[.*", "", record["message"]) for record in records}
    assert not [record for record in records if record["level"] == "error"]


@pytest.mark.slow
def test_requests_that_outlast_the_drain_end_with_an_error(process):
    """A stream has an ``error`` event, a request without stream status 503; the process ends soon after."""
    program, url, *_ = process("exact", "--drain", "1", "--max-moves", "10000")
    body = {"sampler": "published", "nfe": 10_000, "num_samples": 32}
    answers = {}

    def ask(stream):
        answers[stream] = httpx.post(f"{url}/v1/generate", json={**body, "stream": stream}, timeout=60)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    while "didi_running_jobs 2.0" not in httpx.get(f"{url}/metrics").text:
        time.sleep(0.01)
    program.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    for thread in threads:
        thread.join()
    assert program.wait(10) == 0
    assert 1 <= time.monotonic() - signalled < 1 + GRACE
    message = "the server stopped before the request was finished; send it to another server"
    assert answers[False].status_code == 503
    assert answers[False].json()["error"]["message"] == message
    (first, _), *_, last = events_of(answers[True].text)
    assert (first, last) == ("start", ("error", {"message": message}))


def test_a_port_that_is_taken_is_refused_before_anything_is_printed(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"cannot listen on 127.0.0.1:{port}, which is in use; choose another port, or stop the program"
        with pytest.raises(DidiError, match=re.escape(message)):
            serve.run_serve(["exact", "--port", str(port)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_port_that_is_taken_after_the_check_is_refused_too(monkeypatch):
    monkeypatch.setattr(server, "check_address", lambda *_: None)
    monkeypatch.setattr(server, "log_to_stderr", lambda: None)
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DidiError, match=f"cannot listen on 127.0.0.1:{port}, which is in use"):
            serve.run_serve(["exact", "--port", str(port)])


@pytest.mark.parametrize(("host", "reason"), [("192.0.2.1", "Cannot assign requested address"), ("localhost", "")])
def test_an_address_is_available_if_one_of_its_families_is(host, reason):
    """192.0.2.1 is reserved for documentation; localhost may have IPv4 alone."""
    with pytest.raises(DidiError, match=reason) if reason else contextlib.nullcontext():
        server.check_address(host, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one model or more"),
        (["nws"], "a model is a bundled name"),
        (["exact", "exact"], "models have different names"),
        (["=exact"], "a model is MODEL or NAME=MODEL, neither of them empty; got '=exact'"),
        (["tiny="], "a model is MODEL or NAME=MODEL, neither of them empty; got 'tiny='"),
        (["exact", "--host", "0.0.0.0"], "needs a token: set DIDI_SERVE_TOKEN"),
        (["exact", "--token", ""], "a token is one or more ASCII characters"),
        (["exact", "--port", "99999"], "--port lies in [0, 65535]; got 99999"),
        (["exact", "--max-batch", "0"], "max_batch is 1 or more; got 0"),
        (["exact", "--timeout", "0"], "timeout is above 0"),
        (["exact", "--prot", "80"], "did you mean --port?"),
        (["exact", "--network", "int8"], "--network"),
    ],
)
def test_invalid_arguments_are_refused(words, message, monkeypatch):
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=re.escape(message)):
        serve.run_serve(words)


@pytest.mark.parametrize(
    ("words", "variable", "port"),
    [([], None, 8000), (["--port", "9000"], None, 9000), ([], "9000", 9000), (["--port", "9000"], "9000", 9000)],
)
def test_the_port_is_an_argument_or_an_environment_variable(words, variable, port, monkeypatch):
    """The health check of the image reads the variable, so an argument cannot replace it."""
    monkeypatch.delenv(serve.PORT_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(serve.PORT_VARIABLE, variable)
    listened = []
    monkeypatch.setattr(server, "check_address", lambda *_: None)
    monkeypatch.setattr(server, "serve", lambda app, settings, host, port: listened.append(port))
    serve.run_serve(["exact", *words])
    assert listened == [port]


@pytest.mark.parametrize(
    ("words", "variable", "message"),
    [
        (["--port", "9000"], "8000", "--port 9000 differs from DIDI_SERVE_PORT=8000: leave --port out"),
        ([], "80x", "DIDI_SERVE_PORT is a whole number; got '80x'"),
        ([], "99999", "DIDI_SERVE_PORT lies in [0, 65535]; got 99999"),
    ],
)
def test_contradictory_or_invalid_ports_are_refused(words, variable, message, monkeypatch):
    monkeypatch.setenv(serve.PORT_VARIABLE, variable)
    with pytest.raises(UsageError, match=re.escape(message)):
        serve.run_serve(["exact", *words])


def test_a_served_model_is_named_by_the_text_before_the_first_equals_sign_or_as_itself():
    assert serve._named(["tiny-news", "mine=runs/a=b/bundle"]) == {"tiny-news": "tiny-news", "mine": "runs/a=b/bundle"}


@pytest.mark.large
def test_a_thousand_streams_at_once_are_neither_lost_nor_mixed(process):
    """Every stream has the sample of its seed; the memory of the server grows by less than 200 MiB."""
    program, url, *_ = process("exact", "--max-queue", "1024", "--timeout", "300")
    num, low, high = 1000, *resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(high, max(low, 4096)), high))

    def resident_mib():
        lines = Path(f"/proc/{program.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    async def all_streams():
        limits = httpx.Limits(max_connections=num)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

            async def stream(seed):
                answer = await client.post("/v1/generate", json={"seed": seed, "nfe": 8, "stream": True})
                return events_of(answer.text)

            return await asyncio.gather(*(stream(seed) for seed in range(num)))

    httpx.post(f"{url}/v1/generate", json={"nfe": 8})
    before = resident_mib()
    streams = asyncio.run(all_streams())
    growth = resident_mib() - before
    prompts = [didi.Prompt(seed=seed) for seed in range(num)]
    texts = didi.generate(didi.load("exact"), prompts=prompts, num_samples=1, nfe=8).texts
    for seed, (events, text) in enumerate(zip(streams, texts, strict=True)):
        assert [name for name, _ in events] == ["start", *["move"] * 8, "end"]
        assert events[0][1]["seed"] == seed
        assert [move["move"] for name, move in events if name == "move"] == list(range(1, 9))
        assert events[-1][1]["text"] == text
    print(f"resident memory grew by {growth:.0f} MiB")
    assert growth < 200
