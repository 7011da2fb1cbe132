"""Files of weights in a bundle: writing, reading, and digests that show whether a file has changed since.

``bundle.yaml`` holds the SHA-256 of each role's ``model.safetensors`` under ``provenance.weights_sha256``, which older
readers of format 2 ignore. It is the digest of the file, as ``sha256sum`` and the Hub show it.
"""

import dataclasses
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from didi.diffusion import process_settings
from didi.errors import DidiError, UsageError
from didi.files import sha256, staged_folder
from didi.models.manifest import read_manifest
from didi.models.stored_dtype import stored_weights

WEIGHTS = "model.safetensors"
DIGESTS = "weights_sha256"
READ_PROVENANCE = ("corpus", "block_layout")
"""Entries of the provenance that distillation and evaluation read; other entries document the origin of a bundle."""


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """As ``files.staged_folder``, with a one-line error if the disk is full or cannot be written.

    Raises:
        DidiError: The folder could not be written; existing files are kept.
        OSError: ``folder`` is not a possible name of a folder.
    """
    try:
        with staged_folder(folder) as staging:
            yield staging
    except (FileExistsError, NotADirectoryError, IsADirectoryError):  # caused by the name
        raise
    except OSError as error:
        raise DidiError(
            f"{folder} could not be written ({error.strerror or error}); nothing was changed: make room, or choose "
            "another folder"
        ) from error


def write_tensors(tensors: Mapping[str, Tensor], file: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        tensors: Contiguous tensors that share no memory.
        file: The file, in an existing folder.
        metadata: Metadata in the header of the file.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        save_file(dict(tensors), file, metadata=metadata)
    except SafetensorError as error:  # the library reports errors of the system as text
        if (match := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(file)) from error


def read_tensors(file: Path, *names: str, remedy: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that didi wrote.

    Args:
        file: The file.
        names: Names of tensors that must be in the file.
        remedy: Advice for a damaged file, the end of the message.

    Raises:
        DidiError: The file is damaged or not readable, or a tensor is missing.
    """
    try:
        tensors = load_file(file)
        missing = [name for name in names if name not in tensors]
    except (SafetensorError, OSError) as error:
        raise DidiError(f"{file} is damaged or not readable ({error}): {remedy}") from error
    if missing:
        raise DidiError(f"{file} is damaged or not readable (it has no {missing[0]}): {remedy}")
    return tensors


def write_network(network: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write the folder of a role, ``config.json`` and ``model.safetensors``.

    Args:
        network: A network of a bundle.
        folder: The folder, which must not exist.
        dtype: Data type of the stored parameters, see ``stored_weights``.

    Raises:
        UsageError: ``dtype`` cannot represent a weight.
        OSError: A file cannot be written.
    """
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(dataclasses.asdict(network.config), indent=2) + "\n", encoding="utf-8"
    )
    write_tensors(stored_weights(network, dtype), folder / WEIGHTS)


def weights_digests(folder: Path, roles: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the weights of each role of a bundle folder, hexadecimal; files are read in parallel."""
    names = list(roles)
    with ThreadPoolExecutor(max(1, len(names))) as pool:  # hashing releases the interpreter's lock
        return dict(zip(names, pool.map(sha256, [folder / role / WEIGHTS for role in names]), strict=True))


def with_digests(provenance: Mapping[str, Any], folder: Path, roles: Iterable[str]) -> dict[str, Any]:
    """A provenance with the digests of the weights in a bundle folder; present digests are replaced."""
    return {**provenance, DIGESTS: weights_digests(folder, roles)}


def verified(provenance: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Compare the weights in a bundle folder with the digests in a provenance; returns the provenance without them.

    Older bundles have no digests and are not checked.

    Raises:
        UsageError: The digests are not a mapping of roles to 64 hexadecimal digits.
        DidiError: A file of weights has changed since it was written.
    """
    recorded = provenance.get(DIGESTS, {})
    if not isinstance(recorded, dict) or not all(
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in recorded.values()
    ):
        raise UsageError(
            f"{DIGESTS} in {folder / 'bundle.yaml'} is a mapping of roles to 64 hexadecimal digits; got "
            f"{reprlib.repr(recorded)}"
        )
    present = [role for role in recorded if (folder / role / WEIGHTS).is_file()]
    for role, digest in weights_digests(folder, present).items():
        if digest != recorded[role]:
            raise DidiError(
                f"{folder / role / WEIGHTS} has SHA-256 {recorded[role]} in bundle.yaml; found {digest}, so the file "
                f"is damaged or was changed: copy the bundle again, or delete {DIGESTS} from bundle.yaml after a change"
            )
    return {name: value for name, value in provenance.items() if name != DIGESTS}


def content_digest(folder: Path) -> str:
    """SHA-256 of the contents of a bundle folder on which samples and distillation depend, hexadecimal.

    It covers the process, the kind, settings and weights of each network, the tokenizer, the guidance, the initial
    state, and the entries ``READ_PROVENANCE`` of the provenance; the name of the folder does not matter.

    Raises:
        UsageError: The folder is not a bundle.
    """
    manifest = read_manifest(folder)
    names = [f"{role}/{name}" for role in manifest.networks for name in ("config.json", WEIGHTS)] + ["tokenizer.json"]
    files = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    guidance = None if manifest.guidance is None else dataclasses.asdict(manifest.guidance)
    data = {name: manifest.provenance.get(name) for name in READ_PROVENANCE}
    content = [process_settings(manifest.process), manifest.networks, files, guidance, data]
    if manifest.initial_state is not None:  # only then: recorded digests of other bundles stay valid
        content.append(dataclasses.asdict(manifest.initial_state))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
