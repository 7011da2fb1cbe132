"""``benchmarks/speed.py``: verdicts for fast, slow and missing measurements, and the page."""

import json

import pages
import pytest
import speed

from didi.evaluation.speed_row import SpeedRow


def make_row(method, variant="float32", *, seconds, peak=10.0, over=None, speedup=None):
    ratios = {"over_floor": over and (over,) * 3, "speedup": speedup and (speedup,) * 3}
    return SpeedRow(method, 1, 128, 16, (seconds,) * 3, variant, peak_mib=peak, **ratios)


def make_suites(*, over, speedup, peak, autoregressive):
    rows = [
        make_row("ancestral", seconds=1.0, peak=peak, over=over, speedup=speedup),
        make_row("ancestral", "int8", seconds=0.5, over=over, speedup=1.5 * speedup),
        make_row("guided", seconds=2.0, over=over),
        make_row("published", seconds=speedup, peak=100.0),
        make_row("autoregressive", seconds=autoregressive),
    ]
    return dict.fromkeys(speed.SUITES, rows)


def column(suites, number):
    return [line.split(" | ")[number].strip(" |") for line in list(speed.verdicts(suites))[2:]]


def test_bounds_hold_for_fast_measurements_and_fail_for_slow_ones():
    fast = make_suites(over=1.01, speedup=4.5, peak=5.0, autoregressive=3.0)
    assert column(fast, -1) == ["yes"] * 14 + ["no bound"] * 2
    slow = make_suites(over=1.2, speedup=1.5, peak=50.0, autoregressive=1.0)
    assert column(slow, -1) == ["**no**"] * 14 + ["no bound"] * 2
    assert column(slow, 1)[-1] == "1.000 [1.000, 1.000]"


def test_bounds_of_a_missing_suite_are_not_measured():
    suites = make_suites(over=1.01, speedup=4.5, peak=5.0, autoregressive=3.0)
    del suites["paper scale, four sequences"], suites["paper scale, sixteen sequences"]
    assert column(suites, -1) == ["yes"] * 3 + ["not measured"] * 3 + ["yes"] * 8 + ["not measured"] * 2


@pytest.mark.slow
def test_the_page_is_written_from_stored_measurements(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "DOCS", tmp_path)
    monkeypatch.setattr(speed, "STORED", tmp_path / "speed.json")
    (tmp_path / "results").mkdir()
    suites = make_suites(over=1.01, speedup=4.5, peak=5.0, autoregressive=3.0)
    nelbo = {"nats": {"teacher, int8": 5.0}, "sequences": 9, "machine": "a machine"}
    conditions = {"command": "didi bench", "model": "a model", "machine": "a machine"}
    runs = {name: conditions | {"rows": [row.record() for row in rows]} for name, rows in suites.items()}
    speed.STORED.write_text(json.dumps({"suites": runs, "nelbo": nelbo}))
    page = tmp_path / "speed.md"
    page.write_text("before\n<!-- written by benchmarks/speed.py page: begin -->\nstale\n<!-- end -->\nafter\n")
    for _ in range(2):  # writing it again gives the same page
        speed.main(["page"])
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("<!-- end -->\nafter\n")
        assert "stale" not in text
        assert "| teacher, int8 | 5.0000 |" in text
        assert text.count("yes |") == 14


def test_a_page_without_the_marker_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("prose")
    with pytest.raises(SystemExit, match="has no line"):
        pages.renew(tmp_path / "page.md", "speed.py", [])
