"""``benchmarks/reliability.py``: damaged checkpoints, signals and hostile input, with few repetitions."""

import pytest
import reliability


@pytest.mark.slow
def test_a_run_is_recovered_from_every_damaged_checkpoint(tmp_path):
    assert reliability.damaged(20, tmp_path) == {"runs": 20, "recovered": 20}


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_is_recovered(tmp_path):
    counts = reliability.terminated(1, tmp_path)
    assert (counts["runs"], counts["recovered"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", reliability.KINDS)
def test_hostile_input_raises_only_errors_of_one_line(tmp_path, kind):
    counts = reliability.fuzz(kind, 60, tmp_path)
    assert (counts["escapes"], counts["first"]) == (0, "")
    assert counts["refused"] > 0


@pytest.mark.slow
def test_a_killed_run_is_recovered(tmp_path):
    assert reliability.killed(3, tmp_path, seed=1) == {"runs": 3, "recovered": 3}
