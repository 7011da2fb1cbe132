"""Checkpoints of a run: one safetensors file each, with the nested structure as JSON in its header."""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from didi.errors import DidiError
from didi.files import replacing
from didi.models.digest import tensors_digest

PATTERN = "step-*.safetensors"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``step``; the file appears complete or not at all.

    Args:
        folder: checkpoint folder of the run.
        step: number of steps done.
        state: nested dicts, lists, tensors and JSON scalars.
        keep: number of newest checkpoints to keep; older ones are deleted.

    Raises:
        DidiError: the file cannot be written, for example because the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors, set()))
    path = folder / f"step-{step:08d}.safetensors"
    metadata = {"structure": structure, "digest": tensors_digest(structure, tensors)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(f".{PATTERN}.tmp"):  # left by a run that was killed while writing
            unfinished.unlink()
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:  # SafetensorError: the disk is full
        raise DidiError(
            f"{path} could not be written ({error}); the checkpoints before it are kept: make room and resume the run"
        ) from error
    for old in sorted(folder.glob(PATTERN))[:-keep]:
        old.unlink()
    return path


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest intact checkpoint; None without checkpoints. Reports damaged files on stderr.

    Raises:
        DidiError: there are checkpoints, but all are damaged.
    """
    paths = sorted(folder.glob(PATTERN), reverse=True)
    for path in paths:
        try:
            return int(path.stem.removeprefix("step-")), _read(path)
        except (SafetensorError, KeyError, ValueError) as error:
            print(f"{path} is damaged ({error}) and skipped; the previous checkpoint is tried", file=sys.stderr)
    if paths:
        raise DidiError(f"every checkpoint in {folder} is damaged: start again in another folder")
    return None


def _read(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if metadata["digest"] != tensors_digest(metadata["structure"], tensors):
        raise ValueError("digest differs")
    state = _unpack(json.loads(metadata["structure"]), tensors)
    assert isinstance(state, dict)
    return state


def _pack(value: Any, tensors: dict[str, Tensor], storages: set[int]) -> Any:
    """JSON form of ``value``; tensors are added to ``tensors``. Dicts become pairs, since their keys may be ints."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors):06d}"
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that share a storage.
        tensors[name] = value.clone() if storage in storages else value
        storages.add(storage)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors, storages)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors, storages) for item in value]}
    return {"value": value}


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "dict" in packed:
        return {key: _unpack(item, tensors) for key, item in packed["dict"]}
    if "list" in packed:
        return [_unpack(item, tensors) for item in packed["list"]]
    return packed["value"]
