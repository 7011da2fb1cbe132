"""The bounds of the settings of guidance, and its defaults."""

import dataclasses

import pytest

from didi.errors import UsageError
from didi.sampling.guided import Guidance


def test_the_defaults():
    expected = {"guidance_scale": 30.0, "tilted_fraction": 0.25, "gradient_clamp": 1.0, "num_candidates": 4,
                "reduction": "sum", "rank_temperature": 1.0, "select": "sample"}  # fmt: skip
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
        ({"gradient_clamp": -0.5}, "gradient_clamp is 0 or more; got -0.5"),
        ({"gradient_clamp": float("nan")}, "gradient_clamp is 0 or more; got nan"),
        ({"rank_temperature": float("nan")}, r"rank_temperature lies in \[1e-30, 1e\+30\]; got nan"),
    ],
)
def test_other_values_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Guidance(**settings)


def test_settings_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Guidance().guidance_scale = 1.0
