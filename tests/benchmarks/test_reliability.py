import pytest
import reliability


@pytest.mark.slow
def test_a_damaged_checkpoint_is_never_taken(tmp_path):
    assert reliability.damaged(20, tmp_path) == {"runs": 20, "recovered": 20}


@pytest.mark.slow
def test_a_scheduler_s_signal_loses_nothing(tmp_path):
    found = reliability.terminated(1, tmp_path)
    assert (found["runs"], found["recovered"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", reliability.KINDS)
def test_hostile_input_never_escapes(tmp_path, kind):
    found = reliability.fuzz(kind, 60, tmp_path)
    assert (found["escapes"], found["first"]) == (0, "")
    assert found["refused"] > 0


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    assert reliability.killed(3, tmp_path, seed=1) == {"runs": 3, "recovered": 3}
