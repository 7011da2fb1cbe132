"""Bundles: folders with the networks of a run, their tokenizer and process. Loading is strict and uses no pickle.

```
bundle.yaml        format version, process, kind of each network, intended NFE, provenance (``manifest``)
student/           config.json + model.safetensors; any of the four may be absent
teacher/
discriminator/
autoregressive/
tokenizer.json
README.md          model card
```
"""

import dataclasses
import os
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import yaml
from tokenizers import Tokenizer
from torch import nn

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.errors import DidiError, UsageError, first_line, suggestion
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle_fit import check_networks, process_of, tokenizer_for
from didi.models.card import model_card
from didi.models.discriminator import Discriminator, num_parameters
from didi.models.foreign import download
from didi.models.guidance import Guidance
from didi.models.initial_state import InitialState
from didi.models.manifest import ROLES, Manifest, read_manifest
from didi.models.networks import DenoiserNetwork, kind_of
from didi.models.pickled import pack, unpack
from didi.models.stored_network import load_network
from didi.models.untrusted import PlainDumper, read_tokenizer
from didi.models.weights import WEIGHTS, content_digest, verified, with_digests, write_network, written_folder
from didi.torch_defaults import with_torch_defaults

HUB_FILES = [
    "bundle.yaml",
    "tokenizer.json",
    *(f"{role}/{file}" for role in ROLES for file in ("config.json", WEIGHTS)),
]
Role = Literal["student", "teacher", "autoregressive"]
DEFAULT_NFE = 16
BUNDLED = "bundled:"
"""Prefix of a bundled name, for the case that a folder has the same name."""
_UNKNOWN = Absorbing(mask_id=0)  # default of ``Bundle.process``, replaced by the process of the first network


@dataclass
class Bundle:
    """The networks of a run and what is needed to use them.

    Attributes:
        student: few-step generator, if there is one.
        teacher: many-step generator, if there is one.
        discriminator: estimator of the log-ratio student over teacher, needed for guided sampling.
        autoregressive: baseline that samples one token per pass.
        tokenizer: tokenizer of texts; None for token sequences without texts.
        process: diffusion process of all networks; by default that of the first network with a log-linear schedule, see
            ``bundle_fit.process_of``.
        intended_nfe: number of moves that the student is trained for, the largest of several; None if unknown.
        provenance: recipe, seed, data and machine of the run that made it.
        name: name or path from which it was loaded.
        guidance: default settings of guided sampling, as measured; None for the defaults of ``Guidance``.
        initial_state: distribution of the initial state of a one-step student; None for students of several moves.
    """

    student: DenoiserNetwork | None = None
    teacher: DenoiserNetwork | None = None
    discriminator: Discriminator | None = None
    autoregressive: AutoregressiveLM | None = None
    tokenizer: Tokenizer | None = None
    process: Process = _UNKNOWN
    intended_nfe: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    name: str = "unnamed"
    guidance: Guidance | None = None
    initial_state: InitialState | None = None

    def __post_init__(self) -> None:
        if self.process is _UNKNOWN and (network := next(iter(self.networks().values()), None)) is not None:
            self.process = process_of(network)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"discriminator": pack(self.discriminator)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"discriminator": unpack(state["discriminator"])})

    def networks(self) -> dict[str, nn.Module]:
        """The networks of the bundle, by role."""
        return {role: getattr(self, role) for role in ROLES if getattr(self, role) is not None}

    def network(self, role: Role | None = None) -> DenoiserNetwork | AutoregressiveLM:
        """The generator of a role; without a role the student if there is one, else the teacher, else the baseline.

        Raises:
            UsageError: the bundle has no such network.
        """
        networks = {name: getattr(self, name) for name in get_args(Role)}
        if role is not None and role not in networks:
            raise UsageError(f"a role is one of {', '.join(networks)}; got {role!r}")
        chosen = networks[role] if role else next(filter(None, networks.values()), None)
        if chosen is None:
            present = ", ".join(self.networks()) or "no network"
            raise UsageError(
                f"bundle {self.name} has no {role or 'generator'} (it holds {present}): choose another role"
            )
        return cast(DenoiserNetwork | AutoregressiveLM, chosen)

    def default_nfe(self, role: Role | None = None) -> int:
        """Default number of moves of a sampler: ``intended_nfe`` for the student if it is known, otherwise 16."""
        is_student = self.network(role) is self.student
        return (self.intended_nfe if is_student else None) or DEFAULT_NFE

    def denoiser(self, role: Role | None = None) -> DenoiserNetwork:
        """As ``network``, for callers that need a denoiser.

        Raises:
            UsageError: the bundle has no such network, or it is autoregressive.
        """
        chosen = self.network(role)
        if not isinstance(chosen, DenoiserNetwork):
            raise UsageError(f"this needs a denoiser; the network of bundle {self.name} is autoregressive")
        return chosen

    def at_budget(self, num_moves: int) -> "Bundle":
        """A bundle with networks conditioned on ``num_moves``, see ``DiTTrunk.at_budget``; weights are shared.

        Raises:
            UsageError: a network reads the number of moves, and ``num_moves`` is less than 1.
        """
        networks = {
            role: network.at_budget(num_moves)
            for role in ("student", "teacher", "discriminator")
            if hasattr(network := getattr(self, role), "at_budget")
        }
        return dataclasses.replace(self, **networks)

    @staticmethod
    def from_pretrained(name: Path | str) -> "Bundle":
        """As ``load``."""
        return load(name)

    def save_pretrained(self, path: Path | str) -> Path:
        """As ``save``."""
        return save(self, path)

    def push_to_hub(self, repository: str, *, is_private: bool = False, token: str | None = None) -> str:
        """Upload to a Hub repository, which is created if it does not exist; returns the URL of the commit.

        Args:
            repository: ``owner/name``.
            is_private: whether a new repository is private.
            token: access token of the Hub; the stored login by default.

        Raises:
            DidiError: the Hub refuses the upload, or cannot be reached.
        """
        from huggingface_hub import HfApi  # imported here, as it would take a tenth of the start-up time

        with tempfile.TemporaryDirectory() as folder:
            path = save(self, Path(folder, "bundle"))
            try:
                hub = HfApi(token=token)
                hub.create_repo(repository, private=is_private, exist_ok=True)
                commit = hub.upload_folder(
                    repo_id=repository, folder_path=path, commit_message="Bundle of didi-instruct"
                )
            except Exception as error:  # the client raises many classes of network, permission and name errors
                raise DidiError(f"the Hub did not accept {repository!r}: {first_line(error)}") from error
        return str(commit)

    def to(self, device: torch.device | str) -> "Bundle":
        """Move every network to a device, in place, and return the bundle."""
        for network in self.networks().values():
            network.to(device)
        return self


def save(bundle: Bundle, path: Path | str, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a bundle to a folder and return the folder. A failed save leaves no incomplete folder.

    Args:
        bundle: the bundle, with at least one network.
        path: the folder; an existing bundle is replaced.
        dtype: type of the stored weights: float32, float64, float16 or bfloat16; loading always gives float32.

    Raises:
        UsageError: the bundle is empty, ``path`` exists and is not a bundle, or ``dtype`` cannot represent a weight.
        DidiError: the disk is full or cannot be written; existing files are kept.
    """
    path = Path(path)
    networks: dict[str, Any] = dict(bundle.networks())
    if not networks:
        raise UsageError("a bundle holds one network or more; got none")
    if path.exists() and not (path / "bundle.yaml").is_file():
        raise UsageError(f"a bundle replaces only a bundle; {path} is something else: choose another folder")
    with written_folder(path) as staging:
        for role, network in networks.items():
            write_network(network, staging / role, dtype)
        if bundle.tokenizer is not None:
            (staging / "tokenizer.json").write_text(bundle.tokenizer.to_str(pretty=True), encoding="utf-8")
        kinds = {role: kind_of(network) for role, network in networks.items()}
        provenance = with_digests(bundle.provenance, staging, networks)
        manifest = Manifest(
            bundle.process, kinds, bundle.intended_nfe, provenance, bundle.guidance, bundle.initial_state
        ).record()
        (staging / "bundle.yaml").write_text(yaml.dump(manifest, Dumper=PlainDumper, sort_keys=False), encoding="utf-8")
        sizes = {role: num_parameters(network) for role, network in networks.items()}
        card = model_card(sizes, bundle.process, bundle.provenance, bundle.intended_nfe)
        (staging / "README.md").write_text(card, encoding="utf-8")
    return path


@with_torch_defaults
def load(name: Path | str) -> Bundle:
    """Load a bundle by a bundled name, by its folder, or from the Hub by ``owner/name`` or ``owner/name@revision``.

    ``bundled:NAME`` always means a bundled name, and ``./NAME`` always a folder. The returned networks are on the CPU,
    in float32 and in evaluation mode.

    Raises:
        UsageError: the name is unknown or ambiguous, or the folder is not a complete bundle of this format.
        DidiError: the Hub could not be reached, or weights have changed since ``save`` wrote them (``weights``).
    """
    path = _resolve(str(name))
    manifest = read_manifest(path)
    # Before the weights are parsed, so that damaged files get the message of this check.
    provenance = verified(manifest.provenance, path)
    networks: dict[str, Any] = {role: load_network(path / role, role, kind) for role, kind in manifest.networks.items()}
    check_networks(networks, manifest.process, source=str(path))
    tokenizer_file, tokenizer = path / "tokenizer.json", None
    if tokenizer_file.is_file():
        tokenizer = read_tokenizer(tokenizer_file)
        tokenizer = tokenizer_for(tokenizer, networks, manifest.process, source=str(tokenizer_file))
    return Bundle(
        **networks,
        tokenizer=tokenizer,
        process=manifest.process,
        intended_nfe=manifest.intended_nfe,
        provenance=provenance,
        name=str(name),
        guidance=manifest.guidance,
        initial_state=manifest.initial_state,
    )


def digest(name: Path | str) -> str:
    """``weights.content_digest`` of a bundle; ``name`` is that of ``load``.

    Raises:
        UsageError: no bundle has this name, or the folder is not a bundle.
        DidiError: the Hub could not be reached.
    """
    return content_digest(_resolve(str(name)))


def manifest_of(name: Path | str) -> Manifest:
    """The manifest of a bundle, without its weights; ``name`` is that of ``load``.

    Raises:
        UsageError: no bundle has this name, or the folder is not a bundle.
        DidiError: the Hub could not be reached.
    """
    return read_manifest(_resolve(str(name)))


def bundled_names() -> list[str]:
    """Names of the bundles in the package."""
    folder = Path(str(resources.files("didi"))) / "bundles"
    return sorted(path.parent.name for path in folder.glob("*/bundle.yaml"))


def _resolve(name: str) -> Path:
    bundled = name.removeprefix(BUNDLED)
    if bundled in bundled_names():
        if bundled == name and os.path.isfile(os.path.join(name, "bundle.yaml")):  # noqa: PTH113, PTH118 - as below
            raise UsageError(
                f"a model has one name; {name!r} is a bundled one and a bundle in a folder here: write ./{name} for "
                f"the folder, or {BUNDLED}{name}"
            )
        return Path(str(resources.files("didi"))) / "bundles" / bundled
    if os.path.isdir(name):  # noqa: PTH112 - unlike pathlib, it accepts names that are too long
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/")) and not os.path.exists(name):  # noqa: PTH110
        repository, _, revision = name.partition("@")
        return download(repository, HUB_FILES, revision or None)
    raise UsageError(
        f"a model is a bundled name ({', '.join(bundled_names())}), a bundle folder or a Hub repository owner/name; "
        f"got {name!r}{suggestion(bundled, bundled_names())}"
    )
