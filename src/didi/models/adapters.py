"""Low-rank adapters (LoRA, Hu et al. 2022) on frozen weights that several networks share.

Teacher, student and discriminator of a distillation have one trunk. With adapters its weights exist once: what is
trained, averaged and stored is a few matrices of low rank for each. The arithmetic is that of ``peft``.
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
    """A copy with trained weights of its own; the frozen ones are those of ``network`` itself."""
    return copy.deepcopy(network, memo={id(one): one for one in network.parameters() if not one.requires_grad})


def adapt(network: DenoiserNetwork | Discriminator, rank: int, num_blocks: int | None = None) -> None:
    """Freeze the network and put adapters, which begin at zero effect, on its linear layers, in place.

    Those of the last blocks get one, and those of a denoiser's output layer; a discriminator's small head is trained
    itself.

    Args:
        network: its weights may be shared with others.
        rank: of the matrices that are added.
        num_blocks: last blocks that are adapted; None is all.

    Raises:
        UsageError: peft is not installed, or there are fewer blocks than that.
    """
    adapted = last_blocks(network, num_blocks)
    if not isinstance(network, Discriminator):
        adapted.append(network.output_layer)
    linears = {module for one in adapted for module in one.modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in network.named_modules() if module in linears]
    network.requires_grad_(False)
    if names:
        peft = _peft()
        settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0)
        peft.inject_adapter_in_model(settings, network)
    if isinstance(network, Discriminator):
        network.output_layer.requires_grad_(True)


def merged(network: Network) -> Network:
    """A plain network whose weights have the adapters added to them; ``network`` itself where it has none."""
    if not any(".lora_A." in name for name, _ in network.named_parameters()):
        return network
    from peft.tuners.lora import LoraLayer

    whole: Any = copy.deepcopy(network)
    for name, layer in list(whole.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            whole.set_submodule(name, layer.get_base_layer())
    del whole.peft_config
    return whole
