"""Networks made cheaper to run: int8 or bfloat16 trunks, compiled trunks. Draws stay float64 all the same.

The vocabulary head, which runs on few rows, keeps float32: its logits are what probabilities are made of.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from didi.errors import DidiError, UsageError
from didi.models.bundle import Bundle
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT

Numerics = Literal["float32", "bfloat16", "int8"]


def for_inference(bundle: Bundle, numerics: Numerics = "float32", *, is_compiled: bool = False) -> Bundle:
    """A bundle whose masked-diffusion networks run in ``numerics``, for sampling only; ``bundle`` is left as it is.

    Args:
        bundle: networks in float32.
        numerics: ``bfloat16`` by autocast, for accelerators and CPUs that have it; ``int8`` quantises the matrices of
            the blocks by output channel and their inputs as they come, for CPUs. The discriminator stays float32
            then: guided sampling differentiates it, which int8 kernels cannot. The autoregressive network always does.
        is_compiled: compile the trunk; use one batch size, since each has its own code.

    Raises:
        UsageError: no such numerics, or int8 away from the CPU.
        DidiError: this build of torch has no int8 kernels.
    """
    if numerics not in get_args(Numerics):
        raise UsageError(f"network numerics are one of {', '.join(get_args(Numerics))}; got {numerics!r}")
    if numerics == "float32" and not is_compiled:
        return bundle
    changed: dict[str, Any] = {
        role: _cheaper(network, numerics, is_compiled=is_compiled)
        for role in ("student", "teacher", "discriminator")
        if not (role == "discriminator" and numerics == "int8") and (network := getattr(bundle, role))
    }
    return replace(bundle, **changed)


def _cheaper(network: DiT | Discriminator, numerics: Numerics, *, is_compiled: bool) -> nn.Module:
    network = _int8(network) if numerics == "int8" else copy.deepcopy(network)
    name = "features" if isinstance(network, DiT) else "from_embeddings"
    trunk = getattr(network, name)
    if is_compiled:
        trunk = torch.compile(trunk, dynamic=False)
    if numerics == "bfloat16":
        trunk = _in_bfloat16(trunk, next(iter(network.parameters())).device.type)
    setattr(network, name, trunk)
    return network.eval()


def _in_bfloat16(trunk: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    def run(*args: Tensor | None) -> Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return trunk(*args).float()

    return run


def _int8(network: DiT | Discriminator) -> DiT | Discriminator:
    if next(iter(network.parameters())).device.type != "cpu":
        raise UsageError("int8 networks run on the CPU; use bfloat16 on an accelerator")
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise DidiError(f"this torch has no dynamic quantisation ({error}); leave the network at float32") from error
    # The modulation of the noise level has one row: nothing to gain there.
    linears = {
        name: per_channel_dynamic_qconfig
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and "adaLN" not in name
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for a library whose CPU kernels are far slower
        try:
            return quantize_dynamic(network, linears)
        except RuntimeError as error:
            raise DidiError(f"this torch has no int8 kernels ({error}); leave the network at float32") from error
