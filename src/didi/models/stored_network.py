"""One network of a bundle folder: ``config.json`` and ``model.safetensors``, read strictly."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from didi.errors import DidiError, UsageError
from didi.models.convert import check_keys
from didi.models.networks import NETWORKS, build
from didi.models.untrusted import read_json
from didi.models.weights import WEIGHTS


def load_network(folder: Path, role: str, kind: str) -> nn.Module:
    """A network of a bundle folder, in evaluation mode.

    Args:
        folder: folder with ``config.json`` and ``model.safetensors``.
        role: role of the network, for messages.
        kind: key in ``NETWORKS``.

    Raises:
        UsageError: a file is missing or damaged, settings and weights do not match, or a weight is not finite.
    """
    config_file, weights_file = folder / "config.json", folder / WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise UsageError(f"the {role} of a bundle is config.json and model.safetensors; {file} is missing")
    settings = read_json(config_file)
    try:
        weights = NETWORKS[kind].current_names(load_file(weights_file))
        network: nn.Module = build(kind, settings, weights, source=str(config_file))
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, DidiError):
            raise
        raise UsageError(f"{folder} is not a {role} of this format: {error}") from error
    check_keys(network.state_dict(), weights, source=str(weights_file))
    for key, value in weights.items():
        if not bool(value.isfinite().all()):
            raise UsageError(
                f"weights are finite numbers; {key} in {weights_file} has NaN or infinity: take an earlier checkpoint"
            )
    network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)
    return network.eval()
