"""``benchmarks/scale.py``: the estimates of ``didi doctor`` for training steps at paper scale."""

import multiprocessing

import pytest
import scale


@pytest.mark.large
@pytest.mark.parametrize("name", ["owt-169m", "owt-424m", scale.SHARED])
def test_steps_at_paper_scale_take_the_memory_that_doctor_predicts(name):
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak is that of a process
        result = pool.apply(scale.steps_of, [name])
    assert result["finite"]
    assert scale.predicted(name)["predicted"] == pytest.approx(result["measured"], rel=0.15)
