"""``benchmarks/serving.py``: the tables of the page, from made-up measurements, and how throughput is compared."""

import argparse

import pytest
from pages import write_json

import serving


@pytest.fixture
def results(tmp_path):
    ratio = {"ratio": 2.5, "ratio_range": [2.25, 2.75]}
    rows = [
        {"length": 16, "clients": num, "first_p50": 3.0, "p50": 20.0, "p95": 31.0, "tokens_per_second": 1234.0}
        for num in (1, 16)
    ]
    bounds = [
        {"kind": kind, "length": 16, "alone": 24.04, "together": 8.0} for kind in ("trunk", "pass", "scheduler", "gpt2")
    ]
    by_threads = [
        {"threads": num, "rows": [each | ratio for each in rows], "bounds": [each | ratio for each in bounds]}
        for num in (1, 2)
    ]
    header = {"machine": "a machine", "load": 0.5, "model": "tiny-news", "nfe": 8, "rounds": 3, "requests": 64}
    write_json(tmp_path / "results.json", {**header, "by_threads": by_threads})
    return tmp_path / "results.json"


def test_the_page_has_all_tables(results, monkeypatch):
    written = []
    monkeypatch.setattr(serving, "renew", lambda page, script, lines: written.extend(lines))
    serving.page(argparse.Namespace(results=results))
    text = "\n".join(written)
    assert [line for line in written if line.startswith("Over HTTP")] == [
        "Over HTTP, 1 thread:",
        "Over HTTP, 2 threads:",
    ]
    assert text.count("| 16 | 16 | 3 | 20 | 31 | 1,234 | 2.50 [2.25, 2.75] |") == 2
    assert text.count("| 2.50 [2.25, 2.75] | 24.0 / 8.0 | 24.0 / 8.0 |") == 2


def test_throughput_is_compared_within_a_round():
    args = argparse.Namespace(clients=[1, 16], requests=2, rounds=2)
    alone, together = (
        {"first": [1.0, 1.0], "whole": [2.0, 2.0]},
        {"first": [0.1, 0.3], "whole": [0.5, 0.7]},
    )
    turns = {
        1: [alone | {"seconds": 4.0}, alone | {"seconds": 8.0}],
        16: [together | {"seconds": 1.0}, together | {"seconds": 4.0}],
    }
    row = serving.row(32, args, 16, turns)
    assert row["ratio_range"] == [2.0, 4.0]
    assert row["first_p50"] == pytest.approx(200)
    assert row["tokens_per_second"] == pytest.approx(2 * 2 * 32 / 5)


def test_the_first_text_is_that_of_a_move_with_positions():
    lines = [
        "event: move",
        'data: {"move":1,"positions":[]}',
        'data: {"tokens":[[null]]}',
        'data: {"positions":[4]}',
        "",
    ]
    assert [serving.has_text(line) for line in lines] == [False, False, False, True, False]
