"""A replay as an animated GIF: lanes side by side, in the light theme of the page."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from didi.errors import UsageError
from didi.serving.colours import colour, scale_colour
from didi.serving.replay import Lane, Replay

PLAY_SECONDS, HOLD_SECONDS, FRAME_SECONDS = 7.5, 4.0, 0.06
"""Duration of the slowest lane, duration of the last frame, and shortest duration of a frame."""
WIDTH, MARGIN, GAP, LINE = 1200, 44, 52, 33
"""Width of the picture and of its margin, distance of the lanes, and height of a line of text, in pixels."""
MAX_LANES, NUM_COLOURS = 3, 255


def replay_gif(replay: Replay) -> bytes:
    """A replay as the bytes of a GIF file.

    The slowest lane takes ``PLAY_SECONDS``; the picture shows the speed relative to real time.

    Raises:
        UsageError: there are more than ``MAX_LANES`` lanes.
    """
    if len(replay.lanes) > MAX_LANES:
        raise UsageError(f"a GIF shows {MAX_LANES} networks at most; got {len(replay.lanes)}: use --html")
    picture, num_slots = _Picture(replay), round(PLAY_SECONDS / FRAME_SECONDS)
    total = picture.total
    ends = {math.ceil(num_slots * move.milliseconds / total) for lane in replay.lanes for move in lane.moves}
    slots = sorted({0, *ends})
    frames = [picture.frame(min(total * slot / num_slots, total)) for slot in slots]
    seconds = [FRAME_SECONDS * (after - before) for before, after in pairwise(slots)] + [HOLD_SECONDS]
    palette = frames[-1].quantize(NUM_COLOURS)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [10 * round(100 * duration) for duration in seconds]  # milliseconds, in the resolution of GIF, 10 ms
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return file.getvalue()


@dataclass(frozen=True)
class _Place:
    """Place of a token in pixels: left end, baseline and width."""

    x: float
    y: float
    width: float


class _Picture:
    """Draws the state of a replay at a time.

    Attributes:
        total: milliseconds of the slowest lane, more than 0.
    """

    def __init__(self, replay: Replay) -> None:
        self._lanes, count = replay.lanes, len(replay.lanes)
        self.total = max(lane.milliseconds for lane in replay.lanes) or 1.0
        self._serif, self._bold = _font("STIXGeneral.ttf", 24), _font("DejaVuSans-Bold.ttf", 17)
        self._small, self._large = _font("DejaVuSans.ttf", 15), _font("DejaVuSans.ttf", 22)
        self._column = (WIDTH - 2 * MARGIN - GAP * (count - 1)) / count
        self._lefts = [MARGIN + number * (self._column + GAP) for number in range(count)]
        self._places = [list(self._placed(lane, left)) for lane, left in zip(self._lanes, self._lefts, strict=True)]
        self._below = round(max(place.y for places in self._places for place in places)) + 52
        self._height = self._below + 46 + 14 * count + 52

    def frame(self, time: float) -> Image.Image:
        """The picture at a time in milliseconds since the start."""
        image = Image.new("RGB", (WIDTH, self._height), colour("paper"))
        draw = ImageDraw.Draw(image)
        for lane, left, places in zip(self._lanes, self._lefts, self._places, strict=True):
            self._draw_head(draw, lane, left)
            self._draw_tokens(draw, lane, places, time)
            self._draw_figures(draw, lane, left, time)
        self._draw_clock(draw, time)
        return image

    def _placed(self, lane: Lane, left: float) -> Iterator[_Place]:
        """Places of the finished tokens, so that no token shifts during the animation; lines break between words."""
        texts = [_printable(text) for text, _ in lane.state_at(math.inf)]
        starts = [number for number, text in enumerate(texts) if text != text.lstrip() or not number]
        x, y, right = left, MARGIN + 80.0, left + self._column
        for begin, end in pairwise([*starts, len(texts)]):
            widths = [self._serif.getlength(text.lstrip()) for text in texts[begin:end]]
            x += self._serif.getlength(" ") if x > left else 0
            if x + sum(widths) > right and x > left:
                x, y = left, y + LINE
            for width in widths:
                if x + width > right and x > left:
                    x, y = left, y + LINE
                yield _Place(x, y, width)
                x += width

    def _draw_head(self, draw: ImageDraw.ImageDraw, lane: Lane, left: float) -> None:
        draw.line((left, MARGIN, left + self._column, MARGIN), fill=colour("ink"), width=2)
        role, _, details = lane.name.partition(", ")
        draw.text((left, MARGIN + 32), role.capitalize(), colour("ink"), self._bold, anchor="ls")
        after = left + self._bold.getlength(role.capitalize()) + 11
        draw.text((after, MARGIN + 32), details, colour("muted"), self._small, anchor="ls")

    def _draw_tokens(self, draw: ImageDraw.ImageDraw, lane: Lane, places: Sequence[_Place], time: float) -> None:
        for (text, move), place in zip(lane.state_at(time), places, strict=True):
            left, right, base = place.x, place.x + place.width, place.y
            if text is None:
                draw.rectangle((left, base - 13, max(right - 2, left + 2), base), fill=colour("mask"))
                continue
            if move:
                draw.rectangle((left, base - 20, right - 1, base + 6), fill=scale_colour(_share(move, lane)))
            draw.text((left, base), _printable(text).lstrip(), colour("ink"), self._serif, anchor="ls")

    def _draw_figures(self, draw: ImageDraw.ImageDraw, lane: Lane, left: float, time: float) -> None:
        done = [move for move in lane.moves if move.milliseconds <= time]
        passes, milliseconds = (done[-1].passes, done[-1].milliseconds) if done else (0, 0.0)
        x = left
        for value, unit in ((f"{passes}", "passes"), (f"{milliseconds:,.0f}", "ms")):
            draw.text((x, self._below), value, colour("ink"), self._large, anchor="ls")
            x += self._large.getlength(value) + 8
            draw.text((x, self._below), unit, colour("muted"), self._small, anchor="ls")
            x += self._small.getlength(unit) + 30

    def _draw_clock(self, draw: ImageDraw.ImageDraw, time: float) -> None:
        """One bar per lane with a mark for each move, and the time."""
        top, length = self._below + 32, WIDTH - 2 * MARGIN
        for number, lane in enumerate(self._lanes):
            y = top + 14 * number
            draw.rectangle((MARGIN, y, MARGIN + length, y + 7), fill=colour("rule"))
            for move_number, move in enumerate(lane.moves, start=1):
                if move.milliseconds <= time:
                    x = MARGIN + length * move.milliseconds / self.total
                    draw.rectangle((x - 3, y, x, y + 7), fill=scale_colour(_share(move_number, lane), "tick"))
        x, bottom = MARGIN + length * time / self.total, top + 14 * len(self._lanes)
        draw.rectangle((x - 1, top - 5, x + 1, bottom - 2), fill=colour("ink"))
        place = (WIDTH - MARGIN, bottom + 26)
        draw.text(place, f"{time:,.0f} ms, {_speed(self.total)}", colour("muted"), self._small, anchor="rs")


def _speed(total: float) -> str:
    slower = 1000 * PLAY_SECONDS / total
    if slower >= 1.5:
        return f"slowed down {slower:.0f} times"
    return f"sped up {1 / slower:.0f} times" if slower <= 1 / 1.5 else "about real time"


def _share(move: int, lane: Lane) -> float:
    """Place of a move, by its number from 1, on the colour scale."""
    return (move - 1) / max(1, len(lane.moves) - 1)


def _printable(text: str | None) -> str:
    """The text of a token in one line; the end-of-text token is a paragraph sign."""
    return " ".join((text or "").split("\n")).replace("<|endoftext|>", " ¶")


def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """A font from the files of matplotlib."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", file)), size)
