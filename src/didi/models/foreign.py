"""Checkpoint files of other code bases: Hub repositories, safetensors, bin, Lightning .ckpt; read without their code.

A pickled file is read with ``weights_only=True`` alone. Settings objects that such files keep beside the weights are
read as inert stand-ins, so that nothing of them runs; a file that holds anything else is refused.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from didi.errors import DidiError, UsageError
from didi.hub import failure, hub_or_cache
from didi.models.untrusted import read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile, anywhere in a key
NO_NETWORK = ("noise.",)  # noise schedules, which MDLM's Lightning module keeps beside its backbone
INERT_MODULES = ("omegaconf.", "typing.", "collections.", "lightning.", "pytorch_lightning.", "pathlib.")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of another code base holds.

    Attributes:
        weights: the named tensors of its network, in the file's order.
        shadow: the exponential moving average of its parameters, a list without names; None where there is none.
        settings: ``config.json`` beside the file; empty where there is none.
        folder: where it was found.
    """

    weights: dict[str, Tensor]
    shadow: list[Tensor] | None
    settings: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()


class _Inert:
    """Takes the place of a foreign object: any arguments, any state, no behaviour."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...


def read_checkpoint(source: str, *, file: str | None = None, revision: str | None = None) -> Checkpoint:
    """Read a file, a folder or a Hub repository ``owner/name``.

    Args:
        source: which.
        file: the weights in a folder or repository; by default its only file of weights.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        UsageError: nothing is there, or it is no checkpoint that can be read safely.
        DidiError: the Hub could not be reached.
    """
    path = Path(source)
    if not os.path.exists(source):  # noqa: PTH110 - unlike pathlib's, it takes names that no system could hold
        if source.count("/") != 1 or source.startswith((".", "/")):
            raise UsageError(f"a checkpoint is a file, a folder or a Hub repository owner/name; {source!r} is none")
        path = download(
            source, ["config.json", "*.safetensors", "*.bin", "*.ckpt", "*.pth", "tokenizer.json"], revision
        )
    weights_file = path if path.is_file() else _weights_in(path, file)
    weights, shadow = read_weights(weights_file)
    config = weights_file.parent / "config.json"
    return Checkpoint(weights, shadow, read_json(config) if config.is_file() else {}, weights_file.parent)


def download(repository: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The files of a Hub repository that match, in the Hub's own cache.

    Raises:
        DidiError: there is no such repository, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with hub_or_cache() as is_reached:
        try:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
        except Exception as error:  # the client raises a score of network, permission and name errors
            reason = failure(error, is_reached=is_reached)
            raise DidiError(f"no folder and no reachable Hub repository {repository!r}: {reason}") from error


def read_weights(file: Path) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    """Named tensors of a file, and the moving average that goes with them.

    Raises:
        UsageError: the file is damaged, holds more than tensors, or no named ones.
    """
    if file.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(file)), None
        except SafetensorError as error:
            raise UsageError(f"{file} is not a safetensors file: {error}") from error
    if file.suffix not in PICKLED:
        raise UsageError(f"weights are .safetensors, {', '.join(PICKLED)}; got {file}")
    content = _unpickled(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"{file} holds {type(content).__name__}, not named tensors")
    named = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    average = content.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not named or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in named.items()):
        raise UsageError(f"{file} holds no state dict: its own, under 'state_dict' (Lightning) or under 'model' (SEDD)")
    if shadow is not None and not (isinstance(shadow, list) and all(isinstance(one, Tensor) for one in shadow)):
        raise UsageError(f"{file} holds an 'ema' whose 'shadow_params' is no list of tensors")
    return _unwrapped(named), shadow


def _weights_in(folder: Path, file: str | None) -> Path:
    if file is not None:
        if not (folder / file).is_file() or Path(file).name != file:
            raise UsageError(f"{folder} holds no file {file!r}")
        return folder / file
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    found = found or sorted(one for one in folder.iterdir() if one.suffix in (".safetensors", *PICKLED))
    if len(found) != 1 and not (found and found[0].name in WEIGHT_FILES):
        held = ", ".join(one.name for one in found) or "none"
        raise UsageError(f"a checkpoint folder holds one file of weights; {folder} holds {held}: name the file itself")
    return found[0]


def _unpickled(file: Path) -> Any:
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        refused = [name for name in foreign if not name.startswith(INERT_MODULES)]
        if refused:
            raise UsageError(
                f"{file} holds more than tensors and settings ({', '.join(sorted(refused)[:5])}), which would run "
                "code: save its state dict alone and convert that"
            )
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a damaged file ends in any error of zip, pickle and torch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{file} is not a checkpoint that can be read safely: {reason}") from error


def _unwrapped(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys as the network alone has them."""
    bare = {}
    for key, value in named.items():
        for wrapper in WRAPPERS:
            key = key.replace(wrapper, "")
        if not key.startswith(NO_NETWORK):
            bare[key] = value
    return bare
