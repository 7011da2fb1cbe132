"""Settings of guidance: defaults, bounds, and the settings of the paper and of the released code."""

import dataclasses

import pytest

from didi.errors import UsageError
from didi.sampling.guided import Guidance


def test_guidance_has_the_documented_defaults():
    expected = {"guidance_scale": 30.0, "initial_scale": 0.0, "tilted_fraction": 0.25, "gradient_clamp": 1.0,
                "num_candidates": 4, "reduction": "sum", "rank_temperature": 1.0, "select": "sample"}  # fmt: skip
    assert dataclasses.asdict(Guidance()) == expected


@pytest.mark.parametrize(
    "settings",
    [{"num_candidates": 1}, {"tilted_fraction": 0.0}, {"tilted_fraction": 1.0}, {"gradient_clamp": 0.0},
     {"rank_temperature": 0.5}],
)  # fmt: skip
def test_the_bounds_themselves_are_allowed(settings):
    assert vars(Guidance(**settings)).items() >= settings.items()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 0}, "num_candidates is 1 or more; got 0"),
        ({"tilted_fraction": 1.5}, r"tilted_fraction lies in \[0, 1\]; got 1.5"),
        ({"tilted_fraction": -0.5}, r"tilted_fraction lies in \[0, 1\]; got -0.5"),
        ({"rank_temperature": 0.0}, r"rank_temperature lies in \[1e-30, 1e\+30\]; got 0.0"),
        ({"gradient_clamp": -0.5}, "gradient_clamp is 0 or more; got -0.5"),
        ({"gradient_clamp": float("nan")}, "gradient_clamp is a finite number and is 0 or more; got nan"),
        ({"rank_temperature": float("nan")}, r"rank_temperature lies in \[1e-30, 1e\+30\]; got nan"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Guidance(**settings)


def test_settings_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Guidance().guidance_scale = 1.0


def test_paper_guidance_has_the_settings_of_the_paper():
    paper = Guidance.paper()
    assert (paper.scales(8), paper.num_candidates) == ([0, 10, 20, 30], 4)
    assert (paper.reduction, paper.select) == ("masked-mean", "best")


def test_released_guidance_has_the_settings_of_the_released_code():
    released = Guidance.released()
    assert released.scales(4) == [30, 40]
    assert released.scales(2) == [30]
    assert (released.num_candidates, released.reduction, released.select) == (4, "sum", "sample")
    assert released.gradient_clamp == 1
    assert 1 / released.rank_temperature == released.guidance_scale  # the softmax is over rewards times h
