"""Low-rank adapters (LoRA, Hu et al. 2022) on frozen weights that several networks share.

Teacher, student and discriminator of a distillation have the same trunk. With adapters its weights exist once;
training, averages and checkpoints hold only the low-rank matrices of each network. The adapters are those of ``peft``.
"""

import copy
import importlib.util
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from didi.errors import UsageError, from_checkout
from didi.models.discriminator import Discriminator, last_blocks
from didi.models.networks import DenoiserNetwork

if TYPE_CHECKING:
    import types

Network = TypeVar("Network", bound=nn.Module)


def _peft() -> "types.ModuleType":
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            f"low-rank adapters need peft: {from_checkout('lora')}, or leave lora_rank out ({error})"
        ) from error
    return peft


def are_available() -> bool:
    """Whether peft is installed."""
    return importlib.util.find_spec("peft") is not None


def copy_sharing_frozen(network: Network) -> Network:
    """A deep copy that shares the frozen parameters with ``network``."""
    frozen = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
    return copy.deepcopy(network, memo=frozen)


def adapt(network: DenoiserNetwork | Discriminator, rank: int, num_blocks: int | None = None) -> None:
    """Freeze the network and add adapters to its linear layers, in place; new adapters have no effect.

    The linear layers of the last blocks and of a denoiser's output layer get an adapter. The small head of a
    discriminator is trained without one.

    Args:
        network: the network; other networks may share its weights.
        rank: rank of the adapters.
        num_blocks: number of last blocks that are adapted; None is all.

    Raises:
        UsageError: peft is not installed, or the network has fewer blocks.
    """
    adapted = last_blocks(network, num_blocks)
    if not isinstance(network, Discriminator):
        adapted.append(network.output_layer)
    linears = {module for part in adapted for module in part.modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in network.named_modules() if module in linears]
    network.requires_grad_(False)
    if names:
        peft = _peft()
        settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0)
        peft.inject_adapter_in_model(settings, network)
    if isinstance(network, Discriminator):
        network.output_layer.requires_grad_(True)


def merged(network: Network) -> Network:
    """A copy with the adapters merged into its weights; ``network`` itself if it has no adapters."""
    if not any(".lora_A." in name for name, _ in network.named_parameters()):
        return network
    from peft.tuners.lora import LoraLayer

    result: Any = copy.deepcopy(network)
    for name, layer in list(result.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            result.set_submodule(name, layer.get_base_layer())
    del result.peft_config
    return result
