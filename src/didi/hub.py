"""Access to the Hugging Face Hub if it is reachable, else to its local cache, without retries."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from didi.errors import first_line

TIMEOUT_SECONDS = 3
_NOT_FOUND_OFFLINE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError")


def is_reachable() -> bool:
    """Whether the Hub answers one request within ``TIMEOUT_SECONDS``, through the proxies that its client uses."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # the client raises many types of network, proxy and certificate errors
        return False
    return True


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Let clients of the Hub read only their local cache inside the block if the Hub is not reachable.

    Clients retry a request for 25 seconds otherwise, and not all of them pass ``local_files_only`` on.

    Yields:
        Whether the Hub is reachable.
    """
    if is_reachable():
        yield True
        return
    names = ("huggingface_hub.constants", "datasets.config")  # datasets copies the setting at its import
    modules: list[Any] = [sys.modules[name] for name in names if name in sys.modules]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def failure_reason(error: Exception, *, is_reached: bool) -> str:
    """The reason of a failure of a Hub client, in one line.

    Args:
        error: The exception of the client.
        is_reached: Value that ``hub_or_cache`` yielded.
    """
    if not is_reached and any(type(each).__name__ in _NOT_FOUND_OFFLINE for each in (error, error.__cause__)):
        return "the Hub is not reachable, and the local cache does not have the file"
    return first_line(error)
