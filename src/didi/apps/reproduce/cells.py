"""What a study is made of: networks to make, and what is measured of each."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from didi.methods.elbo import PretrainConfig
from didi.methods.settings import DistillationConfig
from didi.models.bundle import Role
from didi.sampling.options import SamplerName

Digest = Callable[[str], str]
"""From the name or folder of a bundle to ``models.bundle.digest`` of it."""


@dataclass(frozen=True)
class Run:
    """A network to make; runs of equal settings are one.

    Attributes:
        config: its settings.
        teacher: the run that makes the teacher of a distillation; None where the settings name a bundle that is there.
    """

    config: PretrainConfig | DistillationConfig
    teacher: "Run | None" = None

    def name(self, digest: Digest) -> str:
        """Folder of the run: recipe, seed and a digest of all settings, in which the teacher stands with its own."""
        settings = asdict(self.config)
        given = settings.pop("teacher", None)
        teacher = self.teacher.name(digest) if self.teacher else given and digest(given)
        found = hashlib.sha256(json.dumps([settings, teacher], sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.config.recipe}-seed{self.config.seed}-{found}"


@dataclass(frozen=True)
class Cell:
    """One sample set of a bundle.

    Attributes:
        bundle: a run, or the name or folder of a bundle that is there.
        role: which network; or ``data``, or the name of an anchor, in the bundle's own corpus and tokens.
        sampler: how it is sampled.
        nfe: number of moves; 0 for what is not sampled.
        temperature: of the logits.
        joint: whether its joint divergence is estimated as well; see ``evaluation.divergences.find_reference``.
    """

    bundle: Run | str
    role: str
    sampler: SamplerName = "ancestral"
    nfe: int = 8
    temperature: float = 1.0
    joint: bool = False

    def name(self, digest: Digest) -> str:
        """File of the cell."""
        more = "" if self.temperature == 1 else f"-T{self.temperature:g}"
        more += "-joint" if self.joint else ""
        return f"{origin_of(self.bundle, digest)}-{self.role}-{self.sampler}-{self.nfe}{more}"


@dataclass(frozen=True)
class LikelihoodCell:
    """One network of a bundle, scored on a corpus that ``zero_shot.rows_of`` knows."""

    bundle: Run | str
    role: Role
    corpus: str

    def name(self, digest: Digest) -> str:
        """File of the cell."""
        return f"{origin_of(self.bundle, digest)}-{self.role}-likelihood-{self.corpus.replace('/', '-')}"


@dataclass(frozen=True)
class JointCell:
    """The joint divergence of samples of a bundle from an autoregressive network.

    Attributes:
        bundle: a run, or the name or folder of a bundle that is there.
        role: which network is sampled.
        sampler: how it is sampled.
        nfe: number of moves, 1 or more.
        reference: with the autoregressive network, over the same tokens.
        num_samples: to which a network is fitted; see ``evaluation.joint``.
    """

    bundle: Run | str
    role: Role
    sampler: SamplerName
    nfe: int
    reference: Run | str
    num_samples: int

    def name(self, digest: Digest) -> str:
        """File of the cell."""
        origin, reference = origin_of(self.bundle, digest), origin_of(self.reference, digest)
        return f"{origin}-{self.role}-{self.sampler}-{self.nfe}-joint{self.num_samples}-{reference}"


AnyCell = Cell | LikelihoodCell | JointCell


def origin_of(bundle: Run | str, digest: Digest) -> str:
    """Part of a cell's name that identifies its bundle: of one that is given, by its content and not by its path."""
    return bundle.name(digest) if isinstance(bundle, Run) else f"{Path(bundle).name}-{digest(bundle)[:10]}"
