"""Whether the networks, the process and the tokenizer of a bundle go together."""

from collections.abc import Mapping
from typing import Any, cast

from tokenizers import Tokenizer

from didi.diffusion import Process
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.tokenizer_fit import MASK, fitted_tokenizer


def process_of(network: Any) -> Process:
    """The process of a network where none is given, with a log-linear schedule.

    An autoregressive network without [MASK] has no use for one. It gets the absorbing process whose [MASK] follows its
    symbols, which is that of masked-diffusion models over the same tokens.
    """
    mask_id, vocab_size = network.config.mask_id, network.config.vocab_size
    if mask_id is None and isinstance(network, AutoregressiveLM):
        mask_id = vocab_size
    return cast(Process, Uniform(vocab_size) if mask_id is None else Absorbing(mask_id))


def check_networks(networks: Mapping[str, Any], process: Process, *, source: str) -> None:
    """Refuse networks over other symbols than those of the process.

    An autoregressive network without [MASK] may have any number of them below the process's [MASK].

    Args:
        networks: By role; one or more.
        process: Of the bundle.
        source: Named in messages.

    Raises:
        UsageError: A network has another mask, or another number of symbols where the process has no mask.
    """
    maskless = {role: one for role, one in networks.items() if is_maskless(one)}
    others = [one for role, one in networks.items() if role not in maskless]
    mask_ids = {network.config.mask_id for network in others}
    if not mask_ids <= {process.mask_id}:
        raise UsageError(f"all networks of a bundle share its mask id {process.mask_id}; {source} has {mask_ids}")
    for role, network in maskless.items():
        if process.mask_id is not None and network.config.vocab_size > process.mask_id:
            raise UsageError(
                f"a network without [MASK] has no symbol with its id; the {role} of {source} has "
                f"{network.config.vocab_size} symbols and the bundle's mask id is {process.mask_id}"
            )
    if isinstance(process, Uniform):
        sizes = {network.config.vocab_size for network in others}
        sizes |= {size for one in maskless.values() if (size := one.config.vocab_size) > process.vocab_size}
        if not sizes <= {num := process.vocab_size}:
            raise UsageError(f"all networks of a bundle share the {num} symbols of its process; {source} has {sizes}")


def is_maskless(network: Any) -> bool:
    """Whether a network is an autoregressive one without [MASK], such as the public GPT-2."""
    return isinstance(network, AutoregressiveLM) and network.mask_id is None


def tokenizer_for(tokenizer: Tokenizer, networks: Mapping[str, Any], process: Process, *, source: str) -> Tokenizer:
    """As ``fitted_tokenizer``, for all networks of a bundle.

    Where no network has [MASK] as a symbol, a tokenizer without it gets it if its next free id follows their symbols,
    so that it is the tokenizer of masked-diffusion models over the same tokens.

    Raises:
        UsageError: As ``fitted_tokenizer``.
    """
    mask_id = process.mask_id
    if all(map(is_maskless, networks.values())):
        own = tokenizer.token_to_id(MASK)
        found = tokenizer.get_vocab_size(with_added_tokens=True) if own is None else own
        mask_id = mask_id if found == mask_id else None
    sizes = [
        network.config.vocab_size + (mask_id is not None and is_maskless(network)) for network in networks.values()
    ]
    return fitted_tokenizer(tokenizer, vocab_size=min(sizes), mask_id=mask_id, source=source)
