"""Short texts: suggestions for a misspelt name, values on one line, counts, aligned tables, parts of a page."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from utils.errors import UserError, printable


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


def one_line(text: str) -> str:
    """The text with line breaks of any kind (Unicode's included) as blanks."""
    return " ".join(text.splitlines()).strip()


def printable_line(value: Any) -> str:
    """``value`` as one line of printable text. Control characters could control a terminal or end a comment."""
    return printable(" ".join(str(value).split()))


def cut(text: str, length: int) -> str:
    """``text``, cut to ``length`` characters with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def as_typed(value: Any) -> str:
    """A setting as a user would type it."""
    if isinstance(value, (list, dict)):
        return printable_line(json.dumps(value, ensure_ascii=False))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else printable_line(value)


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


def replace_part(page: str, part: str, content: str) -> str:
    """A page with ``content`` and a blank line on each side between ``<!-- PART -->`` and ``<!-- end of PART -->``.

    Raises:
        UserError: it does not have each of them once, in this order.
    """
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise UserError(f"the page needs the lines '{begin}' and '{end}', each once: what stands between is replaced")
    return f"{page.split(begin)[0]}{begin}\n\n{content.strip()}\n\n{end}{page.split(end)[1]}"
