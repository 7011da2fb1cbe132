"""The settings that reproduce a sample, as a record for JSON."""

from dataclasses import asdict, is_dataclass
from typing import Any

from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.digest import weights_digest
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import own_settings, with_bundle_settings


def sampling_record(bundle: Bundle, options: SamplingOptions, *, nfe: int, length: int) -> dict[str, Any]:
    """The model, the sampler and the settings that the sampler reads.

    Together with the seed, the number and the prompt of a sample, this record reproduces it.

    Args:
        bundle: bundle as loaded; converting networks for inference changes their digests.
        options: sampling options.
        nfe: number of moves of the time grid.
        length: number of positions of a sequence.

    Returns:
        A record of JSON values. ``weights`` maps the roles of the networks in use to SHA-256 digests of their weights;
        ``times`` is null if the times follow from ``grid`` and ``nfe``.
    """
    network = bundle.network(options.role)
    role = next(name for name, candidate in bundle.networks().items() if candidate is network)
    options = with_bundle_settings(options, bundle)
    settings = {} if isinstance(network, AutoregressiveLM) else own_settings(options)
    values = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in settings.items()
    }
    used = {role: network} | ({"discriminator": bundle.discriminator} if "guidance" in settings else {})
    return {
        "model": bundle.name,
        "weights": {name: weights_digest(module) for name, module in used.items() if module is not None},
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
        **values,
    }
