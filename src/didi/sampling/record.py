"""What a sample needs to be drawn again, as a record for JSON."""

from dataclasses import asdict, is_dataclass
from typing import Any

from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.digest import weights_digest
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import own_settings, with_bundle_settings


def sampling_record(bundle: Bundle, options: SamplingOptions, *, nfe: int, length: int) -> dict[str, Any]:
    """The model, the sampler and the settings that it reads.

    With the seed, the number and the prompt of a sample this repeats it.

    Args:
        bundle: as loaded; networks for inference in other numbers have other digests.
        options: how it is sampled.
        nfe: moves of the time grid.
        length: positions of a sequence.

    Returns:
        A record of texts, numbers and records. ``weights`` maps the roles of the networks that are sampled with to
        SHA-256 digests of their weights; ``times`` is null where the times follow from ``grid`` and ``nfe``.
    """
    network = bundle.network(options.role)
    role = next(name for name, one in bundle.networks().items() if one is network)
    options = with_bundle_settings(options, bundle)
    settings = {} if isinstance(network, AutoregressiveLM) else own_settings(options)
    used = {role: network} | ({"discriminator": bundle.discriminator} if "guidance" in settings else {})
    return {
        "model": bundle.name,
        "weights": {name: weights_digest(one) for name, one in used.items() if one is not None},
        "role": role,
        "sampler": options.sampler,
        "nfe": nfe,
        "grid": options.grid,
        "times": list(options.times) or None,
        "length": length,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "temperature": options.temperature,
        "top_p": options.top_p,
        **{name: asdict(one) if is_dataclass(one) else one for name, one in settings.items()},  # type: ignore[arg-type]
    }
