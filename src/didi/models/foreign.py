"""Checkpoint files of other code bases (Hub repositories, safetensors, bin, Lightning .ckpt), read without their code.

A pickled file is read with ``weights_only=True``. Other objects in it (settings, tokenizers, code) are replaced by
placeholders (``inert_pickle``); no code of the file is imported or run.
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from didi.errors import DidiError, UsageError, first_line
from didi.hub import failure_reason, hub_or_cache
from didi.models import inert_pickle
from didi.models.checkpoint_keys import AVERAGE, BACKBONE, DISCRIMINATOR, by_network
from didi.models.untrusted import read_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".index.json"
WEIGHT_FILES = (  # in order of preference
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
SAFE_HUB_FILES = ("config.json", "tokenizer.json", "vocab.txt", f"*{INDEX}", "*.safetensors")
HUB_FILES = (*SAFE_HUB_FILES, *(f"*{suffix}" for suffix in PICKLED))
ZIP_SIGNATURE = b"PK\x03\x04"


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        weights: state dict of the network, in the order of the file, with bare keys (``checkpoint_keys``).
        shadow: exponential moving average of the parameters as a list without names; None if there is none.
        average: exponential moving average as a state dict with bare keys; empty if there is none.
        discriminator: state dict of a discriminator in the same file; empty if there is none.
        settings: ``config.json`` in the same folder; empty if there is none.
        folder: folder of the file.
    """

    weights: dict[str, Tensor]
    shadow: list[Tensor] | None
    average: dict[str, Tensor] = field(default_factory=dict)
    discriminator: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()


def read_checkpoint(source: str, *, file: str | None = None, revision: str | None = None) -> Checkpoint:
    """Read a file, a folder or a Hub repository ``owner/name``.

    Args:
        source: path or name.
        file: name of the weights file in a folder or repository; by default its only weights file.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        UsageError: the source does not exist, or is not a checkpoint that can be read safely.
        DidiError: the Hub could not be reached.
    """
    weights_file = find_weights(source, file=file, revision=revision)
    state_dict, shadow = read_weights(weights_file)
    networks = by_network(state_dict)
    return Checkpoint(
        networks[BACKBONE],
        shadow,
        networks[AVERAGE],
        networks[DISCRIMINATOR],
        settings_beside(weights_file),
        weights_file.parent,
    )


def find_weights(source: str, *, file: str | None = None, revision: str | None = None) -> Path:
    """The file of weights, or the index of its shards, that ``read_checkpoint`` reads.

    Arguments and errors are those of ``read_checkpoint``.
    """
    path = Path(source)
    if not os.path.exists(source):  # noqa: PTH110 - unlike pathlib, it accepts names that are too long
        if source.count("/") != 1 or source.startswith((".", "/")):
            raise UsageError(f"a checkpoint is a file, a folder or a Hub repository owner/name; {source!r} is none")
        path = download(source, SAFE_HUB_FILES, revision)
        if file is not None or not any((path / name).is_file() for name in WEIGHT_FILES[:2]):
            # After the safe files, since many repositories hold pickled weights too, which are then not needed.
            path = download(source, HUB_FILES, revision)
    return path if path.is_file() else _weights_in(path, file)


def settings_beside(weights_file: Path) -> dict[str, Any]:
    """``config.json`` in the folder of a weights file; empty if there is none.

    Raises:
        UsageError: the file is not a JSON object.
    """
    config = weights_file.parent / "config.json"
    return read_json(config) if config.is_file() else {}


def download(repository: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download the files of a Hub repository that match ``patterns``; returns their folder in the cache of the Hub.

    Raises:
        UsageError: no repository can have this name.
        DidiError: the repository does not exist, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    with hub_or_cache() as is_reached:
        try:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
        except HFValidationError as error:
            raise UsageError(f"no file, no folder and no name of a Hub repository: {first_line(error)}") from error
        except Exception as error:  # the client raises many classes of network and permission errors
            reason = failure_reason(error, is_reached=is_reached)
            raise DidiError(f"no folder and no reachable Hub repository {repository!r}: {reason}") from error


def read_weights(file: Path) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    """The state dict of a file, or of the shards that an index names, and the moving average in the same file.

    Args:
        file: ``.safetensors``, one of ``PICKLED``, or the index ``*.index.json`` of such files.

    Returns:
        The state dict with the keys of the file, and the list of averaged parameters or None.

    Raises:
        UsageError: The file is damaged or is not a weights file, or a shard is missing or does not match its index.
    """
    if file.name.endswith(INDEX):
        return _sharded(file), None
    if file.suffix == ".safetensors":
        try:
            return load_file(file), None
        except SafetensorError as error:
            raise UsageError(f"{file} is not a safetensors file: {error}") from error
    if file.suffix not in PICKLED:
        raise UsageError(f"weights are .safetensors, {', '.join(PICKLED)} or {INDEX} of shards; got {file}")
    content = _unpickled(file)
    if not isinstance(content, Mapping):
        raise UsageError(f"{file} holds {type(content).__name__}, not named tensors")
    nested = (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping))
    state_dict = next(nested, content)
    average = content.get("ema")
    shadow = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not state_dict or not all(isinstance(key, str) and _is_dense(value) for key, value in state_dict.items()):
        raise UsageError(
            f"{file} holds no state dict of dense tensors, neither at the top nor under 'state_dict' (Lightning) or "
            "'model' (SEDD)"
        )
    if isinstance(average, inert_pickle.Placeholder):  # using the raw weights instead would go unnoticed
        raise UsageError(f"{file} holds an 'ema' that is an object of its code, which is not read: save its state dict")
    if shadow is not None and not (isinstance(shadow, list) and all(isinstance(value, Tensor) for value in shadow)):
        raise UsageError(f"{file} holds an 'ema' whose 'shadow_params' is no list of tensors")
    return {key: value.detach() for key, value in state_dict.items()}, shadow


def _is_dense(value: Any) -> bool:
    is_strided = isinstance(value, Tensor) and value.layout is torch.strided
    return is_strided and value.device.type == "cpu"  # tensors on the meta device have no values


def _sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index of ``transformers`` names."""
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise UsageError(f"an index of shards holds weight_map, the file of each key; {index} does not")
    shards: dict[str, dict[str, Tensor]] = {}
    for name in sorted(set(shard_of.values())):
        if Path(name).name != name or name.endswith(INDEX) or not (index.parent / name).is_file():
            raise UsageError(f"a shard is a file of weights beside its index; {index} names {name!r}, which is none")
        shards[name] = read_weights(index.parent / name)[0]
    wrong = [key for key, name in shard_of.items() if key not in shards[name]]
    wrong += [key for name, shard in shards.items() for key in shard if shard_of.get(key) != name]
    if wrong:
        raise UsageError(f"each key is in the shard that {index} names, and in no other; {', '.join(wrong[:5])} is not")
    return {key: shards[name][key] for key, name in shard_of.items()}


def _weights_in(folder: Path, file: str | None) -> Path:
    if file is not None:
        if not (folder / file).is_file() or Path(file).name != file:
            raise UsageError(f"{folder} holds no file {file!r}")
        return folder / file
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    files = files or sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLED))
    if len(files) != 1 and not (files and files[0].name in WEIGHT_FILES):
        names = ", ".join(path.name for path in files) or "none"
        raise UsageError(f"a checkpoint folder holds one file of weights; {folder} holds {names}: name the file itself")
    return files[0]


def _unpickled(file: Path) -> Any:
    try:
        if _has_foreign_objects(file):
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert_pickle)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any error of zip, pickle and torch
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise UsageError(f"{file} is not a checkpoint that can be read safely ({reason[:300]})") from error


def _has_foreign_objects(file: Path) -> bool:
    """Whether a file of ``torch.save`` names functions or classes that ``weights_only=True`` refuses.

    Raises:
        ValueError: The file is a TorchScript archive, which ``torch.load`` would compile.
    """
    with file.open("rb") as opened:
        if opened.read(len(ZIP_SIGNATURE)) != ZIP_SIGNATURE:  # the format before torch 1.6
            return False
    try:
        return bool(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except pickle.UnpicklingError:  # an instruction of a newer pickle protocol, which torch does not disassemble
        return True
