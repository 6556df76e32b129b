"""Takes a matplotlib figure, gives it as SVG text to stand inside a page: the same figure, the same text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

SALT = "isoloss"  # names inside the SVG are hashes; with a fixed salt they are the same every time
MANY = 2000  # points of a figure, above which its clouds are pictures inside the picture
CLOUD = 200  # points, below which a set of marks stays as it is
RASTER = 160  # dots per inch of such a cloud
FONT = "DejaVu Sans, Verdana, Geneva, sans-serif"  # the widths were laid out with the first


@contextmanager
def plain_style() -> Iterator[None]:
    """matplotlib's own defaults within, whatever the user's settings are; afterwards those again."""
    import matplotlib.style
    from matplotlib import rc_context

    with matplotlib.style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": SALT}):
        yield


def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``<svg>`` element for use inside HTML.

    Text stays text, in a font that the page need not bring. Nothing in it refers to anything outside, and
    every id in it begins with ``name``, so that several stand in one page.

    Args:
        figure: to draw; clouds in it are rasterised if it holds more than ``MANY`` points.
        name: of this picture in the page, letters and digits.
        alt: what the picture shows, for those who do not see it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure = Figure()
        >>> _ = figure.subplots().plot([1, 2], [3, 4])
        >>> with plain_style():
        ...     text = svg(figure, "line", "a line that rises")
        >>> text[:52], "http" in text
        ('<svg class="picture" role="img" aria-label="a line t', False)
    """
    from matplotlib.text import Text

    for entry in figure.findobj(Text):
        entry.set_parse_math(False)  # a $ in a column's name is a $
    _rasterise(figure)
    out = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", dpi=RASTER, metadata=nothing)
    return _inline(out.getvalue(), name, alt)


def _rasterise(figure: Figure) -> None:
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.lines import Line2D

    def points(artist: Artist) -> int:
        if isinstance(artist, PathCollection):
            return len(artist.get_offsets())  # type: ignore[arg-type]
        if isinstance(artist, LineCollection):
            return len(artist.get_segments())
        if isinstance(artist, Line2D) and artist.get_marker() not in ("", "None", None, " "):
            return len(artist.get_xdata())  # type: ignore[arg-type]
        return 0

    held = [(artist, points(artist)) for artist in figure.findobj() if points(artist)]
    if sum(count for _, count in held) > MANY:
        for artist, count in held:
            if count >= CLOUD:
                artist.set_rasterized(True)


def _inline(text: str, name: str, alt: str) -> str:
    """The drawing alone: no prolog, no metadata, no style for the whole page, short numbers, own ids."""
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", text, flags=re.S)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None  # matplotlib writes one
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))

    def tag(match: re.Match[str]) -> str:
        return _tag(match[0], name, used)

    body = re.sub(r"<[^>]+>", tag, body)  # words of the user stand between tags and stay as they are
    body = re.sub(r"\n\s*", "\n", body).rstrip()
    label = escape(alt, quote=True)
    return f'<svg class="picture" role="img" aria-label="{label}" viewBox="{box[1]}">{body}'


def _tag(text: str, name: str, used: set[str]) -> str:
    known = re.search(r' id="([^"]+)"', text)
    if known:
        text = text.replace(known[0], f' id="{name}-{known[1]}"' if known[1] in used else "")
    text = re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub(r'(?<= d=")[^"]+|(?<= x=")[^"]+|(?<= y=")[^"]+', lambda m: _short(m[0]), text)
    return re.sub(r"'DejaVu Sans'[^;\"]*", FONT, text)


def _short(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", numbers)
