"""Digests of named tensors."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def tensors_digest(structure: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a description and of tensors in the order of their names, hexadecimal.

    Args:
        structure: text that goes into the digest before the values, such as the names and shapes.
        tensors: the tensors by name; of a tensor without values only the name counts.
    """
    hasher = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        if isinstance(tensors[name], FakeTensor):  # in a dry run
            hasher.update(name.encode())
            continue
        hasher.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of the names and values of a state dict, hexadecimal."""
    weights = network.state_dict()
    return tensors_digest(" ".join(sorted(weights)), weights)
