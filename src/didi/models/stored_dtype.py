"""Weights in the data type in which a bundle stores them."""

import torch
from torch import Tensor, nn

from didi.errors import UsageError

STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def stored_weights(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict of a network for a file, contiguous and on the CPU.

    Args:
        network: The network; it is not changed.
        dtype: Data type of the parameters, one of ``STORED_DTYPES``; buffers, such as rotary frequencies, keep theirs.

    Raises:
        UsageError: ``dtype`` is not in ``STORED_DTYPES``, or a finite parameter would become infinite.
    """
    if dtype not in STORED_DTYPES:
        raise UsageError(f"dtype of stored weights is one of {', '.join(map(str, STORED_DTYPES))}; got {dtype}")
    parameters = dict(network.named_parameters())
    weights = {}
    for key, value in network.state_dict().items():
        stored = value.to(dtype) if key in parameters else value
        if stored.dtype != value.dtype and not torch.equal(stored.isfinite(), value.isfinite()):
            raise UsageError(
                f"weights fit into the dtype that they are stored in; the largest of {key}, {value.abs().max():.3g}, "
                f"does not fit into {dtype}: use torch.bfloat16 or torch.float32"
            )
        weights[key] = stored.detach().cpu().contiguous()
    return weights
