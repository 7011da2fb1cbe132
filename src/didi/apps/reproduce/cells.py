"""The units of a study: runs that train a network, and cells, each a measurement of a network."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DistillationConfig
from didi.models.bundle import Role, digest
from didi.sampling.options import SamplerName

Digest = Callable[[str], str]
"""Function from the name or folder of a bundle to its ``models.bundle.digest``."""


class BundleDigests(dict[str, str]):
    """``models.bundle.digest`` of bundles by name or folder, each computed when it is first read."""

    def __missing__(self, name: str) -> str:
        self[name] = digest(name)
        return self[name]


@dataclass(frozen=True)
class Run:
    """The training of a network; runs with equal settings are the same run.

    Attributes:
        config: settings of the training.
        teacher: the run that trains the teacher of a distillation; None if the settings name an existing bundle.
    """

    config: PretrainConfig | DistillationConfig
    teacher: "Run | None" = None

    def name(self, digest: Digest) -> str:
        """Folder name of the run: recipe, seed and a digest of all settings and of the teacher."""
        settings = asdict(self.config)
        bundle = settings.pop("teacher", None)
        teacher = self.teacher.name(digest) if self.teacher else bundle and digest(bundle)
        hexdigest = hashlib.sha256(json.dumps([settings, teacher], sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.config.recipe}-seed{self.config.seed}-{hexdigest}"


@dataclass(frozen=True)
class Cell:
    """The evaluation of one sample set of a bundle.

    Attributes:
        bundle: a run, or the name or folder of an existing bundle.
        role: role of the network; or ``data`` or the name of an anchor, for texts of the bundle's corpus.
        sampler: name of the sampler.
        nfe: number of moves; 0 for data and anchors.
        temperature: temperature of the logits.
        joint: whether the joint divergence is estimated as well; see ``evaluation.divergences.find_reference``.
    """

    bundle: Run | str
    role: str
    sampler: SamplerName = "ancestral"
    nfe: int = 8
    temperature: float = 1.0
    joint: bool = False

    def name(self, digest: Digest) -> str:
        """File name of the cell, without its extension."""
        suffix = "" if self.temperature == 1 else f"-T{self.temperature:g}"
        suffix += "-joint" if self.joint else ""
        return f"{origin_of(self.bundle, digest)}-{self.role}-{self.sampler}-{self.nfe}{suffix}"


@dataclass(frozen=True)
class LikelihoodCell:
    """The likelihood of a corpus under one network of a bundle; see ``zero_shot.rows_of`` for corpora."""

    bundle: Run | str
    role: Role
    corpus: str

    def name(self, digest: Digest) -> str:
        """File name of the cell, without its extension."""
        return f"{origin_of(self.bundle, digest)}-{self.role}-likelihood-{self.corpus.replace('/', '-')}"


@dataclass(frozen=True)
class JointCell:
    """The joint divergence of samples of a bundle from an autoregressive network.

    Attributes:
        bundle: a run, or the name or folder of an existing bundle.
        role: role of the sampled network.
        sampler: name of the sampler.
        nfe: number of moves, 1 or more.
        reference: run or bundle of the autoregressive network, over the same tokens.
        num_samples: number of samples to which a network is fitted; see ``evaluation.joint``.
    """

    bundle: Run | str
    role: Role
    sampler: SamplerName
    nfe: int
    reference: Run | str
    num_samples: int

    def name(self, digest: Digest) -> str:
        """File name of the cell, without its extension."""
        origin, reference = origin_of(self.bundle, digest), origin_of(self.reference, digest)
        return f"{origin}-{self.role}-{self.sampler}-{self.nfe}-joint{self.num_samples}-{reference}"


AnyCell = Cell | LikelihoodCell | JointCell


def name_of(bundle: Run | str) -> str:
    """Name of an existing bundle, or the recipe of a run."""
    return bundle if isinstance(bundle, str) else bundle.config.recipe


def origin_of(bundle: Run | str, digest: Digest) -> str:
    """Part of a cell's name that identifies its bundle; an existing bundle by its content, not by its path."""
    return bundle.name(digest) if isinstance(bundle, Run) else f"{Path(bundle).name}-{digest(bundle)[:10]}"
