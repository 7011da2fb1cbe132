"""What is shown to users of a model: replays of sampling as files, and the page in ``static``."""
