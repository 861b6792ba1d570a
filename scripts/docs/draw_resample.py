"""The picture of a resample, docs/resample.svg: ``python -m scripts.docs.draw_resample``.

A weight is split into its singular directions; some are taken out as the pair A B, trained, and merged back; then
others are taken out. The picture is made of shapes and words only, so that it is the same on each machine.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from utils.io.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "resample.svg"

WIDTH, HEIGHT, COLUMN = 1000, 360, 250  # pixels; a column for each of the four steps
SIDE, DIRECTIONS = 80, 8  # of a square weight: pixels, and singular directions q
STRIP = SIDE // DIRECTIONS
TOP = 70  # of every matrix
PAPER, INK, GREY, EDGE = "#ffffff", "#222222", "#dfe3e8", "#7d8590"
FIRST, SECOND = "#e8833a", "#3a78c9"
DRAWN = {FIRST: (2, 5), SECOND: (0, 6)}  # the directions of two draws, by their colour; R is 2

LEGEND = ((GREY, "frozen"), (FIRST, "the first subspace: A and B train"), (SECOND, "the next subspace"))
STEPS = (
    ("1  Take R directions out", "W = U S Vᵀ", "R of the q directions, at random"),
    ("2  Train them", "W_f = W − A B is frozen", "gradients for A and B only"),
    ("3  Merge them", "W ← W_f + A B", "the layer computes the same"),
    ("4  Take others out", "W = U S Vᵀ", "of the merged weight"),
)


def picture() -> str:
    """The picture as SVG."""
    parts = [*_factors(17, FIRST), *_pair(COLUMN + 19), *_merged(2 * COLUMN + 85), *_factors(3 * COLUMN + 17, SECOND)]
    for number, (title, formula, remark) in enumerate(STEPS):
        middle = number * COLUMN + COLUMN // 2
        parts.append(_text(middle, 40, title, 17, "bold"))
        parts.append(_text(middle, 214, formula, 17))
        parts.append(_text(middle, 240, remark, 14))
    parts += [_arrow(f"M {x - 10} {TOP + SIDE // 2} h 12") for x in (COLUMN, 2 * COLUMN + 20, 3 * COLUMN - 20)]
    parts.append(_arrow(f"M {3.5 * COLUMN:g} 256 C {3.5 * COLUMN:g} 300, {1.5 * COLUMN:g} 300, {1.5 * COLUMN:g} 258"))
    parts.append(_text(int(2.5 * COLUMN), 310, "again, after each epoch or every few steps", 14))
    for x, (fill, words) in zip((200, 330, 650), LEGEND, strict=True):
        parts += [_box(x, 332, 14, 14, fill), _text(x + 22, 344, words, 14, anchor="start")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">\n'
        "<title>A resample: R directions of W are taken out, trained and merged, and others are taken out</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{EDGE}"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{PAPER}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _factors(left: int, colour: str) -> list[str]:
    """U, S and Vᵀ side by side, with the drawn directions in ``colour``."""
    middle, right = left + SIDE + 8, left + SIDE + 16 + 40
    parts = []
    for i in range(DIRECTIONS):
        fill = colour if i in DRAWN[colour] else GREY
        parts.append(_box(left + i * STRIP, TOP, STRIP, SIDE, fill))
        parts.append(
            f'<circle cx="{middle + 2.5 + i * 5:g}" cy="{TOP + 5 + i * STRIP}" r="3.5" fill="{fill}" stroke="{EDGE}"/>'
        )
        parts.append(_box(right, TOP + i * STRIP, SIDE, STRIP, fill))
    names = (("U", left + SIDE // 2), ("S", middle + 20), ("Vᵀ", right + SIDE // 2))
    return parts + [_text(x, TOP + SIDE + 22, name) for name, x in names]


def _pair(left: int) -> list[str]:
    """The frozen rest W_f, and the pair A B that trains."""
    a, width = left + SIDE + 24, len(DRAWN[FIRST]) * STRIP
    b = a + width + 8
    parts = [_box(left, TOP, SIDE, SIDE, GREY), _text(left + SIDE + 12, TOP + SIDE // 2 + 6, "+", 20)]
    for i in range(len(DRAWN[FIRST])):
        parts.append(_box(a + i * STRIP, TOP, STRIP, SIDE, FIRST))
        parts.append(_box(b, TOP + i * STRIP, SIDE, STRIP, FIRST))
    names = (("W_f", left + SIDE // 2), ("A", a + width // 2), ("B", b + SIDE // 2))
    return parts + [_text(x, TOP + SIDE + 22, name) for name, x in names]


def _merged(left: int) -> list[str]:
    """The weight with the trained pair in it. The product A B changes every entry, so all of W is tinted."""
    parts = [_box(left, TOP, SIDE, SIDE, GREY), _box(left, TOP, SIDE, SIDE, FIRST, 0.45)]
    return [*parts, _text(left + SIDE // 2, TOP + SIDE + 22, "W")]


def _box(x: int, y: int, width: int, height: int, fill: str, opacity: float = 1) -> str:
    shade = "" if opacity == 1 else f' fill-opacity="{opacity}"'
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"{shade} stroke="{EDGE}"/>'


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{EDGE}" stroke-width="2" marker-end="url(#tip)"/>'


def _text(x: int, y: int, words: str, size: int = 15, weight: str = "normal", anchor: str = "middle") -> str:
    """Words at a place, with the f of W_f as a subscript."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{INK}" text-anchor="{anchor}"'
    subscript = f'<tspan dy="4" font-size="{size * 0.7:g}">f</tspan><tspan dy="-4">'
    first, *rest = escape(words).split("_f")
    return f'<text x="{x}" y="{y}" {style}>{first}{"".join(f"{subscript}{part}</tspan>" for part in rest)}</text>'


if __name__ == "__main__":
    write_text(PAGE, picture())
