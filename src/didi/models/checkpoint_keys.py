"""Keys of public state dicts: without the prefixes of wrappers, and divided by network."""

from collections.abc import Mapping

from torch import Tensor

from didi.errors import UsageError

# Modules that hold another one: DDP, torch.compile, FSDP and activation checkpointing; anywhere in a key.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
BACKBONE = "backbone"  # the network in a Lightning module or a Hub model, at the front of a key; twice in SDTT
AVERAGE, DISCRIMINATOR = "student_ema", "discriminator"  # in the Lightning module of DiDi-Instruct
UNUSED = ("noise", "teacher", "reward_baseline")  # of Lightning modules, beside the networks that are converted


def bare_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the keys of the network alone, in the same order: no wrappers, no ``backbone.`` at the front.

    Raises:
        UsageError: Two keys are the same without their prefixes.
    """
    bare: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if (name := _bare(key)) in bare:
            raise UsageError(
                f"a state dict has each key once; this one holds {name} both with and without a prefix "
                f"({BACKBONE}, {', '.join(WRAPPERS)})"
            )
        bare[name] = value
    return bare


def by_network(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The bare keys of each network of a training checkpoint; what belongs to none of them (``UNUSED``) is left out.

    Returns:
        ``BACKBONE``: the network itself, ``AVERAGE``: its moving average, ``DISCRIMINATOR``: the discriminator; empty
        where the state dict has none.

    Raises:
        UsageError: Two keys are the same without their prefixes.
    """
    found: dict[str, dict[str, Tensor]] = {BACKBONE: {}, AVERAGE: {}, DISCRIMINATOR: {}}
    for key, value in bare_keys(state_dict).items():
        first, _, rest = key.partition(".")
        if first in (AVERAGE, DISCRIMINATOR):
            found[first][rest] = value
        elif first not in UNUSED:
            found[BACKBONE][key] = value
    return {network: bare_keys(weights) for network, weights in found.items()}


def _bare(key: str) -> str:
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == BACKBONE:
        del parts[0]
    return ".".join(parts)
