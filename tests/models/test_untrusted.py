"""Settings in files become dataclasses, or are refused in one line that names the field."""

import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from didi.errors import UsageError
from didi.models.untrusted import record_from


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    bound: float | None = None
    order: Literal["first", "last"] = "first"

    def __post_init__(self):
        if self.rate > 1:
            raise UsageError(f"rate is at most 1; got {self.rate}")


@dataclass(frozen=True)
class Outer:
    size: int
    inner: Inner = field(default_factory=Inner)
    names: tuple[str, ...] = ()
    is_on: bool = False
    name: str | None = None


def read(settings, **options):
    return record_from(Outer, settings, source="x.yaml", **options)


def test_values_get_the_types_of_the_fields():
    actual = read({"size": 3, "inner": {"rate": 1, "bound": "1e-4"}, "names": ["a", "b"], "name": "1e-4"})
    assert actual == Outer(3, Inner(1.0, 1e-4), ("a", "b"), False, "1e-4")
    assert type(actual.inner.rate) is float
    assert read({"size": 3, "inner": {"bound": float("inf")}}).inner.bound == math.inf


def test_missing_values_come_from_the_base_or_are_defaults():
    base = Outer(4, Inner(0.25, 2.0, "last"), ("a",), True, "n")
    assert read({"inner": {"rate": 0.75}}, base=base) == Outer(4, Inner(0.75, 2.0, "last"), ("a",), True, "n")
    assert read({"inner": {"bound": None}, "name": None}, base=base) == Outer(
        4, Inner(0.25, None, "last"), ("a",), True, None
    )
    assert read({}, base=base) == base
    assert read({"size": 1}) == Outer(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "x.yaml lacks the setting size"),
        ({"siz": 3}, r"x.yaml has no setting 'siz'; did you mean 'size'\?"),
        ({"size": 3, "inner": {"rat": 1.0}}, r"has no setting 'inner.rat'; did you mean 'rate'\?"),
        ({"size": 3, "inner": {"zzz": 1.0}}, "no setting 'inner.zzz'; it has inner.rate, inner.bound, inner.order"),
        ({"size": True}, "size in x.yaml is a whole number; got True"),
        ({"size": 3.0}, "size in x.yaml is a whole number; got 3.0"),
        ({"size": "3"}, "size in x.yaml is a whole number; got '3'"),
        ({"size": 3, "inner": None}, "inner in x.yaml is a mapping of settings; got None"),
        ({"size": 3, "inner": {1: 2}}, "inner in x.yaml is a mapping of settings"),
        ({"size": 3, "inner": {"rate": "high"}}, "inner.rate in x.yaml is a number; got 'high'"),
        ({"size": 3, "inner": {"rate": 10**400}}, "inner.rate in x.yaml is a number"),
        ({"size": 3, "inner": {"bound": []}}, r"inner.bound in x.yaml is a number or null; got \[\]"),
        ({"size": 3, "inner": {"order": "third"}}, "inner.order in x.yaml is one of first, last; got 'third'"),
        ({"size": 3, "inner": {"order": [1]}}, "inner.order in x.yaml is one of first, last"),
        ({"size": 3, "names": "ab"}, "names in x.yaml is a list, of which each is a text; got 'ab'"),
        ({"size": 3, "names": [1]}, "names in x.yaml is a list, of which each is a text"),
        ({"size": 3, "is_on": 1}, "is_on in x.yaml is true or false; got 1"),
        ({"size": 3, "inner": {"rate": 2.0}}, "x.yaml: rate is at most 1; got 2.0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"size": -1}, {"size": 2**31}, {"size": 1, "inner": {"rate": float("nan")}}])
def test_sizes_of_a_network_are_bounded_and_its_numbers_finite(settings):
    with pytest.raises(UsageError, match=r"whole number in \[0, 2147483647\]|finite number"):
        read(settings, is_bounded=True)
    if "inner" in settings:  # NaN is refused without bounds too
        with pytest.raises(UsageError, match="a number"):
            read(settings)
    else:
        assert read(settings).size == settings["size"]
