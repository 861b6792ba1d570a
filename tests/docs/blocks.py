"""The examples on the pages of the site and in the README: fenced blocks, indented commands, commands in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.docs.collect import ROOT, pages

PAGES = ["README.md", *pages()]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    (?:python|bash|make|pip) .*\n)+", re.M)
INLINE = re.compile(r"`((?:python|bash|make|pip|pytest|torchrun) [^`]+)`")
A_FILE = re.compile(r"# [\w/]+\.(?:py|yaml)\b")  # begins an example of CONTRIBUTING.md, which other tests run


@dataclass(frozen=True)
class Block:
    """An example on a page.

    Attributes:
        page: the page, as a path of the repository.
        line: the number of its first line.
        language: of a fenced block as written; ``bash`` for other commands.
        text: the example.
        inline: whether it stands within a sentence.
    """

    page: str
    line: int
    language: str
    text: str
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The examples of a page in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rest = FENCED.sub(lambda found: "\n" * found[0].count("\n"), text)
    found = [_block(page, text, match.start(2), match[1], match[2]) for match in FENCED.finditer(text)]
    found += [_block(page, rest, match.start(), "bash", match[0]) for match in INDENTED.finditer(rest)]
    for match in INLINE.finditer(rest):
        found.append(_block(page, rest, match.start(), "bash", " ".join(match[1].split()), inline=True))
    return sorted((block for block in found if not A_FILE.match(block.text)), key=lambda block: block.line)


def _block(page: str, text: str, start: int, language: str, content: str, inline: bool = False) -> Block:
    return Block(page, text.count("\n", 0, start) + 1, language, content, inline)


def of_language(language: str) -> dict[str, list[Block]]:
    """The blocks of a language on each page that has any."""
    found = {page: [block for block in blocks(page) if block.language == language] for page in PAGES}
    return {page: here for page, here in found.items() if here}


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block of ``bash``, with their comments; of alternatives in braces the first."""
    text = re.sub(r"\{(\w+)(?:,\w+)+\}", r"\1", block.text.replace("\\\n", " "))
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()
