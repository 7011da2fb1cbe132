"""The command ``didi``: its subcommands, their flags and what they print."""
