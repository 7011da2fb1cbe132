"""Checks that the networks, the process and the tokenizer of a bundle are compatible."""

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
    """The default process of a network, with a log-linear schedule.

    An autoregressive network without [MASK] does not use a process. It gets the absorbing process whose [MASK] follows
    its symbols, as in masked-diffusion models over the same tokens.
    """
    mask_id, vocab_size = network.config.mask_id, network.config.vocab_size
    if mask_id is None and isinstance(network, AutoregressiveLM):
        mask_id = vocab_size
    return cast(Process, Uniform(vocab_size) if mask_id is None else Absorbing(mask_id))


def check_networks(networks: Mapping[str, Any], process: Process, *, source: str) -> None:
    """Refuse networks whose symbols differ from those of the process.

    An autoregressive network without [MASK] may have fewer symbols, if their ids are below the [MASK] of the process.

    Args:
        networks: One or more networks by role.
        process: The process of the bundle.
        source: Name of the bundle in messages.

    Raises:
        UsageError: A network has another mask, or, if the process has no mask, another number of symbols.
    """
    maskless = {role: network for role, network in networks.items() if is_maskless(network)}
    other_networks = [network for role, network in networks.items() if role not in maskless]
    mask_ids = {network.config.mask_id for network in other_networks}
    if not mask_ids <= {process.mask_id}:
        raise UsageError(f"all networks of a bundle share its mask id {process.mask_id}; {source} has {mask_ids}")
    for role, network in maskless.items():
        if process.mask_id is not None and network.config.vocab_size > process.mask_id:
            raise UsageError(
                f"a network without [MASK] has no symbol with its id; the {role} of {source} has "
                f"{network.config.vocab_size} symbols and the bundle's mask id is {process.mask_id}"
            )
    if isinstance(process, Uniform):
        num_symbols = process.vocab_size
        sizes = {network.config.vocab_size for network in other_networks}
        sizes |= {size for network in maskless.values() if (size := network.config.vocab_size) > num_symbols}
        if not sizes <= {num_symbols}:
            raise UsageError(
                f"all networks of a bundle share the {num_symbols} symbols of its process; {source} has {sizes}"
            )


def is_maskless(network: Any) -> bool:
    """Whether a network is autoregressive and has no [MASK], such as the public GPT-2."""
    return isinstance(network, AutoregressiveLM) and network.mask_id is None


def tokenizer_for(tokenizer: Tokenizer, networks: Mapping[str, Any], process: Process, *, source: str) -> Tokenizer:
    """As ``fitted_tokenizer``, for all networks of a bundle.

    If no network has [MASK] as a symbol, it is added to a tokenizer without it when the next free id is the mask of the
    process. Masked-diffusion models over the same tokens can then use this tokenizer.

    Raises:
        UsageError: As ``fitted_tokenizer``.
    """
    mask_id = process.mask_id
    if all(map(is_maskless, networks.values())):
        tokenizer_mask_id = tokenizer.token_to_id(MASK)
        if tokenizer_mask_id is None:
            tokenizer_mask_id = tokenizer.get_vocab_size(with_added_tokens=True)
        mask_id = mask_id if tokenizer_mask_id == mask_id else None
    sizes = [
        network.config.vocab_size + (mask_id is not None and is_maskless(network)) for network in networks.values()
    ]
    return fitted_tokenizer(tokenizer, vocab_size=min(sizes), mask_id=mask_id, source=source)
