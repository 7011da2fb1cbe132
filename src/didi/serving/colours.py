"""Colours of the page for other formats, read from the light theme in ``static/style.css``."""

import math
import re
from functools import cache

from didi.serving.page import STATIC

Oklch = tuple[float, float, float]
Colour = tuple[int, int, int]


def colour(name: str) -> Colour:
    """An sRGB colour, each channel in [0, 255].

    Args:
        name: name of the CSS variable without the leading dashes, such as ``paper``.
    """
    return _srgb(_variables()[name])


def scale_colour(share: float, scale: str = "scale") -> Colour:
    """The sRGB colour of a move, each channel in [0, 255].

    Args:
        share: place of the move in [0, 1], 0 for the first move.
        scale: ``scale`` for backgrounds of text, ``tick`` for marks without text.
    """
    first, last = _variables()[f"{scale}-first"], _variables()[f"{scale}-last"]
    lightness, chroma, hue = (a + (b - a) * share for a, b in zip(first, last, strict=True))
    return _srgb((lightness, chroma, hue))


@cache
def _variables() -> dict[str, Oklch]:
    matches = re.findall(r"--([\w-]+): light-dark\(oklch\(([^)]+)\)", (STATIC / "style.css").read_text("utf-8"))
    return {name: (float(l), float(c), float(h)) for name, values in matches for l, c, h in [values.split()]}  # noqa: E741


def _srgb(value: Oklch) -> Colour:
    """OKLCH to sRGB, clipped to the sRGB gamut (Ottosson 2020, https://bottosson.github.io/posts/oklab/)."""
    lightness, chroma, hue = value
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741 - cone responses l, m, s
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    )
    red, green, blue = (round(255 * _encoded(min(max(channel, 0.0), 1.0))) for channel in linear)
    return red, green, blue


def _encoded(linear: float) -> float:
    """The transfer function of sRGB."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
