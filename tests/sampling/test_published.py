"""The published sampler has the exact distribution of ancestral sampling, and runs the network in every move."""

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.schedule import schedule_from_name
from didi.sampling.published import Published

LOG_LINEAR = Absorbing(3)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", ["log-linear", "cosine", "geometric"])
def test_samples_of_a_small_vocabulary_follow_the_exact_distribution(
    enumerated, tabular, draw, chi_square, name, precision
):
    process = Absorbing(3, schedule_from_name(name))
    _, drawn = draw(Published(tabular(enumerated.table), process, precision=precision), num=3000, nfe=4)
    assert chi_square(drawn, enumerated.sample_probs([enumerated.table] * 4, process)) > 1e-3


def test_the_network_runs_at_every_position_in_every_move(enumerated, tabular, draw):
    denoiser = tabular(enumerated.table)
    steps, _ = draw(Published(denoiser, LOG_LINEAR), num=5, nfe=8)
    assert denoiser.trunk_rows == [5] * 8
    assert denoiser.head_rows == [10] * 8
    before = [torch.full((5, 2), enumerated.MASK)] + [step.z for step in steps[:-1]]
    for z, step in zip(before, steps, strict=True):
        assert torch.equal(step.network_passes, (z == enumerated.MASK).any(1).long())
