"""Short texts for people: suggestions for a misspelt name, names as parts of file names, counts, aligned tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` is most like, None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The nearest of the known names, or all of them where none is near, to end a sentence about an unknown one."""
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(known) or 'none'}"


def suggestions(name: str, known: Collection[str]) -> str:
    """Sentences for an unknown name where the known ones are few: the nearest, if one is near, and all of them."""
    near = nearest(name, known)
    return (f"Did you mean {near}? " if near else "") + f"Known: {', '.join(known)}"


def slug(name: str, unsafe: str = r"[^\w.-]+") -> str:
    """``name`` as part of a file name: dashes in place of what ``unsafe`` matches, no dot or dash at either end.

    The result is empty where nothing else is left.
    """
    return re.sub(unsafe, "-", name).strip(".-")


def human(count: float) -> str:
    """A count in thousands, millions or billions: 5.7M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}".removesuffix(".0") + unit
    return f"{count:.3g}"


def justified(texts: Sequence[str], right: bool = False) -> list[str]:
    """``texts`` padded with blanks to one width."""
    width = max(map(len, texts), default=0)
    return [text.rjust(width) if right else text.ljust(width) for text in texts]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The lines of a table whose columns stand below each other, those with the indices ``right`` to the right."""
    columns = [justified(column, i in right) for i, column in enumerate(zip(*rows, strict=True))]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
