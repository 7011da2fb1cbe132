"""Keys of public state dicts: removal of wrapper prefixes, and separation by network."""

from collections.abc import Mapping

from torch import Tensor

from didi.errors import UsageError

# Wrapper modules of DDP, torch.compile, FSDP and activation checkpointing; they occur anywhere in a key.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
BACKBONE = "backbone"  # the network in a Lightning module or a Hub model, at the front of a key; twice in SDTT
AVERAGE, DISCRIMINATOR = "student_ema", "discriminator"  # in the Lightning module of DiDi-Instruct
UNUSED = ("noise", "teacher", "reward_baseline")  # parts of Lightning modules that are not converted


def bare_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without wrapper modules and without ``backbone.`` at the front of its keys, in the same order.

    Raises:
        UsageError: Two keys are equal without their prefixes.
    """
    result: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if (name := _bare(key)) in result:
            raise UsageError(
                f"a state dict has each key once; this one holds {name} both with and without a prefix "
                f"({BACKBONE}, {', '.join(WRAPPERS)})"
            )
        result[name] = value
    return result


def by_network(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state dict of each network of a training checkpoint, with bare keys; ``UNUSED`` parts are left out.

    Returns:
        State dicts of the network (``BACKBONE``), its moving average (``AVERAGE``) and the discriminator
        (``DISCRIMINATOR``), each empty if the checkpoint does not have it.

    Raises:
        UsageError: Two keys are equal without their prefixes.
    """
    networks: dict[str, dict[str, Tensor]] = {BACKBONE: {}, AVERAGE: {}, DISCRIMINATOR: {}}
    for key, value in bare_keys(state_dict).items():
        first, _, rest = key.partition(".")
        if first in (AVERAGE, DISCRIMINATOR):
            networks[first][rest] = value
        elif first not in UNUSED:
            networks[BACKBONE][key] = value
    return {name: bare_keys(weights) for name, weights in networks.items()}


def _bare(key: str) -> str:
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == BACKBONE:
        del parts[0]
    return ".".join(parts)
