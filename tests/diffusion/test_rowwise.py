"""``by_rows`` computes a function of rows of logits in parts, with the same values and gradients and less memory."""

import pytest
import torch

from didi.diffusion import rowwise
from didi.diffusion.rowwise import by_rows, rows_at_a_time


def row_values(logits, shift, weight):
    """A function of each row, for the tests."""
    return weight * (logits + shift[:, None]).double().exp().sum(1).log() - logits[:, 0]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    logits, shift, weight, scale = (torch.randn(*shape, generator=generator) for shape in [(7, 5), (7,), (7,), (7,)])
    return logits.requires_grad_(), shift, weight, scale


@pytest.mark.parametrize("elements", [1, 5 * 3, 2**18])
def test_values_and_gradients_equal_those_of_all_rows_at_once(inputs, monkeypatch, elements):
    monkeypatch.setattr(rowwise, "CACHE_ELEMENTS", elements)
    logits, shift, weight, scale = inputs
    whole = row_values(logits, shift, weight)
    (expected,) = torch.autograd.grad((scale * whole).sum(), logits)
    actual = by_rows(row_values, logits, shift, weight)
    torch.testing.assert_close(actual, whole)
    (gradient,) = torch.autograd.grad((scale * actual).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert torch.equal(by_rows(row_values, logits, shift, weight), actual)
    with torch.inference_mode():
        assert torch.equal(by_rows(row_values, logits, shift, weight), actual)
    assert not by_rows(row_values, logits.detach(), shift, weight).requires_grad


def test_the_gradient_has_the_type_of_the_logits(inputs):
    logits, shift, weight, _ = inputs
    half = logits.detach().bfloat16().requires_grad_()
    by_rows(row_values, half, shift, weight).sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_parts_fit_in_the_cache_of_a_cpu_and_are_larger_elsewhere():
    assert rows_at_a_time(8192, torch.device("cpu")) == 32
    assert rows_at_a_time(2**20, torch.device("cpu")) == 1
    assert rows_at_a_time(8192, torch.device("cuda")) == 2048


@pytest.mark.parametrize("grad", [False, True])
def test_a_part_has_as_many_rows_as_fit(inputs, monkeypatch, grad):
    monkeypatch.setattr(rowwise, "CACHE_ELEMENTS", 5 * 3)
    logits, sizes = inputs[0].detach().requires_grad_(grad), []

    def recording(part):
        sizes.append(len(part))
        return part.sum(1)

    by_rows(recording, logits)
    assert sizes == [3, 3, 1]


def test_the_backward_pass_keeps_one_tensor_of_the_size_of_the_logits(inputs):
    logits, shift, weight, _ = inputs
    values = by_rows(row_values, logits, shift, weight)
    assert [tensor.shape for tensor in values.grad_fn.saved_tensors] == [logits.shape]


def test_a_second_derivative_is_refused(inputs):
    logits, shift, weight, scale = inputs
    values = scale.requires_grad_() * by_rows(row_values, logits, shift, weight)
    (gradient,) = torch.autograd.grad(values.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
