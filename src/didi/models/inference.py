"""Faster networks for inference: int8 or bfloat16 trunks, compiled trunks. Draws stay float64.

The vocabulary head stays float32: it runs on few rows, and its logits determine the probabilities.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MethodType
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from didi.errors import DidiError, UsageError
from didi.models.bundle import Bundle
from didi.models.discriminator import Discriminator
from didi.models.networks import DenoiserNetwork

GRAPH_WARM_UPS = 3
TRUNK_DTYPE = "trunk_dtype"
"""Attribute of a network whose trunk ``for_inference`` converted to another data type."""
Numerics = Literal["float32", "bfloat16", "int8"]


def for_inference(bundle: Bundle, numerics: Numerics = "float32", *, is_compiled: bool = False) -> Bundle:
    """A copy of a bundle whose diffusion networks run in ``numerics``, for sampling only.

    Args:
        bundle: networks in float32.
        numerics: ``bfloat16`` by autocast, for accelerators and CPUs that support it; ``int8`` quantises the matrices
            of the blocks by output channel, and their inputs dynamically, for CPUs. With ``int8`` the discriminator
            stays float32, because guided sampling differentiates it and int8 kernels have no gradient. The
            autoregressive network always stays float32.
        is_compiled: compile the trunk; on a CUDA device block by block, captured as a CUDA graph. Each batch size is
            compiled and captured separately.

    Raises:
        UsageError: the numerics are unknown, int8 is used on another device than the CPU, or a network to be compiled
            reads the number of moves.
        DidiError: this build of torch has no int8 kernels.
    """
    if numerics not in get_args(Numerics):
        raise UsageError(f"network numerics are one of {', '.join(get_args(Numerics))}; got {numerics!r}")
    if numerics == "float32" and not is_compiled:
        return bundle
    reads_budget = (getattr(network.config, "is_budget_conditioned", False) for network in bundle.networks().values())
    if is_compiled and any(reads_budget):
        raise UsageError(
            f"a compiled network keeps one number of moves; those of bundle {bundle.name} read it: leave --compile out"
        )
    converted: dict[str, Any] = {
        role: _converted(network, numerics, is_compiled=is_compiled)
        for role in ("student", "teacher", "discriminator")
        if not (role == "discriminator" and numerics == "int8") and (network := getattr(bundle, role))
    }
    return replace(bundle, **converted)


def check_ready(networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks that are not ready for sampling.

    Args:
        networks: networks by their name in messages.

    Raises:
        UsageError: a network is on the meta device, is not float32 (unless ``for_inference`` converted it) or is in
            training mode, or the networks are on several devices.
    """
    for name, network in networks.items():
        first = next(network.parameters())  # an embedding, which ``for_inference`` leaves in float32
        if first.is_meta:
            raise UsageError(f"the {name} is on the meta device and has no values: load it again")
        if other := (_dtypes(network) - {torch.float32, trunk_dtype(network)}) | ({first.dtype} - {torch.float32}):
            raise UsageError(
                f"networks are sampled with float32 weights; the {name} has {', '.join(map(str, other))}: call its "
                "float(), or use didi.models.inference.for_inference for bfloat16"
            )
        if network.training:
            raise UsageError(
                f"networks are sampled in evaluation mode; the {name} is in training mode: call its eval()"
            )
    devices = {next(network.parameters()).device for network in networks.values()}
    if len(devices) > 1:
        raise UsageError(f"networks are sampled on one device; got {', '.join(map(str, devices))}: use Bundle.to")


def trunk_dtype(network: nn.Module) -> torch.dtype:
    """Data type of the trunk's activations: bfloat16 if ``for_inference`` converted the trunk to it, else float32."""
    return getattr(network, TRUNK_DTYPE, torch.float32)


def _dtypes(network: nn.Module) -> set[torch.dtype]:
    """Data types of all parameters.

    Every request of a server calls this, and ``Module.parameters`` takes twice as long, since it also makes names.
    """
    parameters = (parameter for module in network.modules() for parameter in vars(module)["_parameters"].values())
    return {parameter.dtype for parameter in parameters if parameter is not None}


def _converted(network: DenoiserNetwork | Discriminator, numerics: Numerics, *, is_compiled: bool) -> nn.Module:
    network = _int8(network) if numerics == "int8" else copy.deepcopy(network)
    name = "features_of_embeddings" if isinstance(network, DenoiserNetwork) else "from_embeddings"
    device_type = next(iter(network.parameters())).device.type
    trunk = getattr(network, name)
    if is_compiled and device_type == "cuda":
        for block in network.blocks:
            block.compile(dynamic=False)
    elif is_compiled:
        trunk = torch.compile(trunk, dynamic=False)
    if numerics == "bfloat16":
        for module in network.blocks.modules():
            if isinstance(module, nn.Linear):  # converted once, instead of by autocast in every pass
                module.to(torch.bfloat16)
        trunk = _in_bfloat16(trunk, device_type)
        setattr(network, TRUNK_DTYPE, torch.bfloat16)
    if is_compiled and device_type == "cuda":
        trunk = Graphed(trunk)
    setattr(network, name, trunk)
    return network.eval()


def _in_bfloat16(trunk: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    is_bound = isinstance(trunk, MethodType)
    function: Callable[..., Tensor] = cast(MethodType, trunk).__func__ if is_bound else trunk

    def run(*args: Any) -> Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return function(*args).float()

    # A bound method stays bound, so that ``shallow_copy`` can bind it to the copy (``DiTTrunk.at_budget``).
    return MethodType(run, cast(MethodType, trunk).__self__) if is_bound else run


class Graphed:
    """A function of CUDA tensors whose kernels are launched as one CUDA graph for each combination of shapes.

    With gradients enabled the function is called without a graph.

    Args:
        function: a function of tensors, some of which may be None; its control flow must not depend on their values.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor | None], Tensor]] = {}

    def __call__(self, *args: Tensor | None) -> Tensor:
        """The result of the function, as a new tensor."""
        if torch.is_grad_enabled():
            return self._function(*args)
        key = tuple(None if arg is None else (tuple(arg.shape), arg.dtype) for arg in args)
        if key not in self._graphs:
            self._graphs[key] = self._captured(args)
        graph, inputs, output = self._graphs[key]
        _copy_into(inputs, args)
        graph.replay()
        return output.clone()

    @torch.no_grad()
    def _captured(self, args: tuple[Tensor | None, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor | None], Tensor]:
        with torch.inference_mode(False):  # later calls write into these inputs, in inference mode or not
            inputs = [None if arg is None else torch.empty_like(arg, requires_grad=False) for arg in args]
        _copy_into(inputs, args)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compile kernels and initialise libraries before the capture
            for _ in range(GRAPH_WARM_UPS):
                self._function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(*inputs)
        return graph, inputs, output


def _copy_into(inputs: Sequence[Tensor | None], args: Sequence[Tensor | None]) -> None:
    for buffer, arg in zip(inputs, args, strict=True):
        if buffer is not None and arg is not None:
            buffer.copy_(arg)


def _int8(network: DenoiserNetwork | Discriminator) -> DenoiserNetwork | Discriminator:
    if next(iter(network.parameters())).device.type != "cpu":
        raise UsageError("int8 networks run on the CPU; use bfloat16 on an accelerator")
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise DidiError(f"this torch has no dynamic quantisation ({error}); leave the network at float32") from error
    # The modulation of the noise level is left out: it has few rows, so int8 would not make it faster.
    linears = {
        name: per_channel_dynamic_qconfig
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and "adaLN" not in name
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends another library, whose CPU kernels are far slower
        try:
            return quantize_dynamic(network, linears)
        except RuntimeError as error:
            raise DidiError(f"this torch has no int8 kernels ({error}); leave the network at float32") from error
