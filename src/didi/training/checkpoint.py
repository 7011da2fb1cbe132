"""Atomic, resumable state of a run: one safetensors file a checkpoint, its structure as JSON in the header."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from didi.errors import DidiError

PATTERN = "step-*.safetensors"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``step``; the file appears complete or not at all.

    Args:
        folder: the run's checkpoint folder.
        step: updates done.
        state: nested dicts, lists, tensors and JSON scalars.
        keep: newest checkpoints that stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors))
    path = folder / f"step-{step:08d}.safetensors"
    # The rename below is atomic, so a file of this name is whole unless the disk itself lied; the digest tells.
    content = save(tensors, metadata={"structure": structure, "digest": _digest(structure, tensors)})
    write_atomically(path, content)
    for old in sorted(folder.glob(PATTERN))[:-keep]:
        old.unlink()
    return path


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest checkpoint that is whole; None if there is none.

    Raises:
        DidiError: there are checkpoints, but every one is damaged.
    """
    paths = sorted(folder.glob(PATTERN), reverse=True)
    for path in paths:
        try:
            return int(path.stem.removeprefix("step-")), _read(path)
        except (SafetensorError, KeyError, ValueError):
            continue
    if paths:
        raise DidiError(f"every checkpoint in {folder} is damaged; start again in another folder with --out")
    return None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if metadata["digest"] != _digest(metadata["structure"], tensors):
        raise ValueError("digest differs")
    state = _unpack(json.loads(metadata["structure"]), tensors)
    assert isinstance(state, dict)
    return state


def _digest(structure: str, tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        hasher.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON form of ``value``; tensors move to ``tensors``. Dicts become pairs, since an optimizer's keys are ints."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors):06d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value]}
    return {"value": value}


def _unpack(packed: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "dict" in packed:
        return {key: _unpack(item, tensors) for key, item in packed["dict"]}
    if "list" in packed:
        return [_unpack(item, tensors) for item in packed["list"]]
    return packed["value"]
