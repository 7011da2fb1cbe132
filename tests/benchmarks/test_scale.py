import multiprocessing

import pytest
import scale


@pytest.mark.large
@pytest.mark.parametrize("name", ["owt-169m", "owt-424m", scale.SHARED])
def test_paper_scale_takes_real_steps_in_the_memory_that_doctor_says(name):
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak is that of a process
        found = pool.apply(scale.steps_of, [name])
    assert found["finite"]
    assert scale.predicted(name)["predicted"] == pytest.approx(found["measured"], rel=0.15)
