"""Gradients as vectors, and the comparison of random estimates with an exact gradient."""

import torch


def flat_gradient(value, network):
    """Gradient of a scalar with respect to all parameters of a network, as one float64 vector."""
    gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def assert_mean_is(exact, estimates, *, max_error, min_cosine=0.95):
    """The mean of the estimates is the exact gradient: along it within 4 standard errors, and in direction.

    Args:
        exact: The exact gradient.
        estimates: List of independent estimates.
        max_error: Largest standard error of the mean along the exact gradient, relative to its length.
        min_cosine: Smallest cosine of the angle between mean and exact gradient.
    """
    rows = torch.stack(estimates)
    along = rows @ exact / (exact @ exact)
    error = along.std() / len(along) ** 0.5
    assert error < max_error
    assert abs(along.mean() - 1) < 4 * error
    assert torch.cosine_similarity(rows.mean(0), exact, dim=0) > min_cosine
