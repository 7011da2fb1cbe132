"""``python -m didi`` is the command ``didi``."""

from didi.apps.cli import main

main()
