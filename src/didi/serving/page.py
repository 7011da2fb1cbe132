"""A replay as one HTML file without external assets: the player in ``static`` and the recorded moves."""

import html
from importlib import resources

from didi.files import json_text
from didi.serving.replay import Replay

STATIC = resources.files("didi.serving") / "static"


def replay_page(replay: Replay) -> str:
    """The HTML document of a replay."""
    heading = replay.prompt or "Without a prompt"
    models = ", ".join(dict.fromkeys(str(lane.settings["model"]) for lane in replay.lanes))
    times = f"times of the moves were measured on {replay.machine}"
    note = f"Model {models}. One text per network, each sampled alone; {times}."
    # A token with "</script>" would end the script element.
    data = json_text(replay.record(), ensure_ascii=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(f"{heading}: didi"),
        "heading": html.escape(heading),
        "note": html.escape(note),
        "style": (STATIC / "style.css").read_text("utf-8"),
        "player": (STATIC / "player.js").read_text("utf-8"),
        "replay": data,
    }
    template = (resources.files("didi.serving") / "replay.html").read_text("utf-8")
    return template.format_map(parts)
