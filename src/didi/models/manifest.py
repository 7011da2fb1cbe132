"""The manifest ``bundle.yaml`` of a bundle: format 2 is written; formats 1 and 2 are read.

Format 1 was for masked diffusion only: it has ``roles`` (a list), ``schedule`` and ``mask_id`` at the top. Format 2 has
``process`` (name and settings), ``networks`` (kind of each role) and ``intended_nfe``, and may have ``guidance`` and
``initial_state``.
"""

import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from didi.diffusion import Process, process_from_settings, process_settings
from didi.errors import UsageError
from didi.models.guidance import Guidance
from didi.models.initial_state import InitialState
from didi.models.networks import NETWORKS
from didi.models.untrusted import MAX_INT, read_json, read_yaml, record_from

FORMAT_VERSION = 2
ROLES = ("student", "teacher", "discriminator", "autoregressive")
_FIRST_KINDS = {"student": "dit", "teacher": "dit", "discriminator": "dit-discriminator", "autoregressive": "gpt2"}
_TYPES: dict[int, dict[str, Any]] = {
    1: {"format_version": int, "roles": list, "schedule": str, "mask_id": int | None, "provenance": dict},
    2: {"format_version": int, "process": dict, "networks": dict, "intended_nfe": int | None, "provenance": dict},
}
_OPTIONAL: dict[str, type[Any]] = {"guidance": Guidance, "initial_state": InitialState}
"""Optional settings of format 2, and their types."""


@dataclass(frozen=True)
class Manifest:
    """Contents of ``bundle.yaml``.

    Attributes:
        process: process of all networks.
        networks: kind of each network, by role.
        intended_nfe: number of moves that the student is trained for, the largest of several; None if unknown.
        provenance: recipe, seed, data and machine.
        guidance: settings with which guided sampling was measured; None if unknown.
        initial_state: distribution of the initial state of a one-step student; None for other students.
    """

    process: Process
    networks: dict[str, str]
    intended_nfe: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    guidance: Guidance | None = None
    initial_state: InitialState | None = None

    def record(self) -> dict[str, Any]:
        """The manifest as plain values, in the order of the file."""
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        return {
            "format_version": FORMAT_VERSION,
            "process": process_settings(self.process),
            "networks": self.networks,
            "intended_nfe": self.intended_nfe,
            **{name: asdict(settings) for name, settings in optional.items() if settings is not None},
            "provenance": self.provenance,
        }


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle folder.

    Raises:
        UsageError: the file is missing, or its format is not supported.
    """
    file = path / "bundle.yaml"
    if not file.is_file():
        raise UsageError(f"a bundle folder holds bundle.yaml; {path} does not: give the folder that `didi` wrote")
    values = read_yaml(file)
    version = values.get("format_version")
    if version not in _TYPES or type(version) is not int:
        raise UsageError(
            f"this didi reads bundle formats {' and '.join(map(str, _TYPES))}; {path} has {reprlib.repr(version)}"
        )
    types = _TYPES[version]
    optional = {name: values.pop(name, None) for name in _OPTIONAL if version == FORMAT_VERSION}
    if set(values) != set(types):
        raise UsageError(f"{file} holds exactly {', '.join(types)}; got {reprlib.repr(sorted(values))}")
    for key, kind in types.items():
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            name = getattr(kind, "__name__", str(kind))
            raise UsageError(f"{key} in {file} is {name}; got {reprlib.repr(values[key])}")
    values = _upgraded(values, file) if version == 1 else values
    _check(values, file)
    try:
        process = process_from_settings(values["process"])
    except UsageError as error:
        raise UsageError(f"process in {file}: {error}") from error
    records = {name: _record(name, settings, file) for name, settings in optional.items()}
    return Manifest(process, values["networks"], values["intended_nfe"], values["provenance"], **records)


def _record(name: str, settings: Any, file: Path) -> Any:
    """Optional settings as their dataclass; None if they are missing."""
    if settings is not None and not isinstance(settings, dict):
        raise UsageError(f"{name} in {file} is a mapping of settings; got {reprlib.repr(settings)}")
    return None if settings is None else record_from(_OPTIONAL[name], settings, source=f"{name} in {file}")


def _check(values: dict[str, Any], file: Path) -> None:
    networks, nfe = values["networks"], values["intended_nfe"]
    if not networks or not all(role in ROLES for role in networks):
        raise UsageError(f"networks in {file} have some of the roles {', '.join(ROLES)}; got {reprlib.repr(networks)}")
    for role, kind in networks.items():
        if not isinstance(kind, str) or kind not in NETWORKS:
            raise UsageError(f"the kind of a network is one of {', '.join(NETWORKS)}; {file} has {role}: {kind!r:.80}")
    if nfe is not None and not 1 <= nfe <= MAX_INT:
        raise UsageError(f"intended_nfe in {file} is 1 or more, or null; got {nfe}")


def _upgraded(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Values of format 1 in format 2."""
    roles, mask_id = values["roles"], values["mask_id"]
    if not roles or not all(role in ROLES for role in roles) or len(set(roles)) < len(roles):
        raise UsageError(f"roles in {file} are some of {', '.join(ROLES)}; got {reprlib.repr(roles)}")
    process = {"name": "absorbing", "mask_id": mask_id}
    if mask_id is None:  # a converted network of uniform-state diffusion; its settings have the number of symbols
        vocab_size = read_json(file.parent / roles[0] / "config.json").get("vocab_size")
        process = {"name": "uniform", "vocab_size": vocab_size}
    return {
        "process": process | {"schedule": values["schedule"]},
        "networks": {role: _FIRST_KINDS[role] for role in roles},
        "intended_nfe": None,
        "provenance": values["provenance"],
    }
