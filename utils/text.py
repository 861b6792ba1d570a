"""Short texts for people: suggestions for a misspelt name, names as parts of file names, counts, aligned tables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar of ``known``; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them if none is near."""
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(known) or 'none'}"


def suggestions(name: str, known: Collection[str]) -> str:
    """Sentences about an unknown name, if few are known: the nearest one, if one is near, and all of them."""
    near = nearest(name, known)
    return (f"Did you mean {near}? " if near else "") + f"Known: {', '.join(known)}"


def slug(name: str, unsafe: str = r"[^\w.-]+") -> str:
    """``name`` as part of a file name: a dash replaces each match of ``unsafe``, and no dot or dash is at either end.

    The result may be empty.
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
    """The lines of a table with aligned columns; those with the indices ``right`` are aligned to the right."""
    columns = [justified(column, i in right) for i, column in enumerate(zip(*rows, strict=True))]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
