"""Drawings of structures and predicted errors in Figures 6 and 7."""

import numpy as np
import pytest

from didi.apps.reproduce.protein_figures import Example, _colours, examples_figure, in_principal_axes


@pytest.mark.parametrize("seed", range(8))
def test_a_structure_is_rotated_and_not_mirrored(seed):
    """A right-handed helix stays right-handed from every side."""
    angles = np.arange(20) * 1.745
    helix = np.stack([2.3 * np.cos(angles), 2.3 * np.sin(angles), 1.5 * np.arange(20)], 1)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    rotation[:, 0] *= np.linalg.det(rotation)
    turned = in_principal_axes(helix @ rotation.T + 7)
    assert turned.mean(0) == pytest.approx(0, abs=1e-9)
    steps = np.diff(turned, axis=0)
    assert np.linalg.norm(steps, axis=1) == pytest.approx(np.linalg.norm(np.diff(helix, axis=0), axis=1))
    assert (np.linalg.det(np.stack([steps[:-2], steps[1:-1], steps[2:]], 1)) > 0).all()
    assert (np.diff(turned.var(0)) <= 1e-9).all()  # the longest axis is the first


def test_predicted_errors_are_blue_where_small_and_red_where_large():
    low, middle, high, beyond = _colours("Å", is_higher_better=False).to_rgba([0.0, 1.0, 2.0, 9.0])
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert tuple(high) == tuple(beyond) != tuple(middle)


def test_probabilities_of_three_classes_are_darker_where_larger():
    lowest, middle, highest = _colours("probability", is_higher_better=True).to_rgba([1 / 3, 0.7, 1.0])[:, :3].sum(1)
    assert lowest > middle > highest


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2, 61])
def test_a_structure_of_any_length_is_drawn(tmp_path, num):
    trace = np.random.default_rng(num).normal(size=(num, 3)).tolist()
    file = examples_figure([Example("one", "A" * num, [0.5] * num, trace)], tmp_path / "f.png", unit="Å")
    assert file.stat().st_size > 5_000
