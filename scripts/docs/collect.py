"""The pages of the documentation site, gathered from the repository: ``python -m scripts.docs.collect``.

A page stands where it belongs: most in ``docs``, a study's in ``studies``. Each reads well as plain Markdown. They are
written to ``site/pages``, from where mkdocs builds the site:

- a link to another page leads to its place in the site;
- a file that a page links to is copied, so that the link works where the repository is not at hand;
- an equation (a block of ``math``, in LaTeX) becomes MathML, which browsers draw without a script from elsewhere.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
import shutil
from pathlib import Path

from utils.errors import UserError, run_cli

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "site" / "pages"
OUTSIDE = (
    "examples/README.md",
    "studies/README.md",
    "studies/*/README.md",
    "benchmarks/results/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)

CODE = re.compile(r"(^```.*?^```[ \t]*$|`[^`\n]+`)", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
EQUATION = re.compile(r"^```math\n(.*?)^```[ \t]*$", re.M | re.S)


def pages() -> dict[str, str]:
    """Each page, as a path of the repository, and its path in the site."""
    found = [path for pattern in ("docs/*.md", *OUTSIDE) for path in sorted(ROOT.glob(pattern))]
    return {name: place(name) for name in (path.relative_to(ROOT).as_posix() for path in found)}


def place(name: str) -> str:
    """Where a file of the repository stands in the site."""
    return name.removeprefix("docs/").replace("README.md", "index.md")


def with_site_links(text: str, source: str) -> tuple[str, set[str]]:
    """The text of a page with the site's links, and the files of the repository that it links to.

    Args:
        text: the page ``source``, whose links are relative to it.

    Raises:
        UserError: a link leads to nothing in the repository, or to a folder or a text that is no page of the site.
    """
    known, files = pages(), set()

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if (ROOT / target).is_dir():
            target += "/README.md"
        if not (ROOT / target).is_file() or (target.endswith(".md") and target not in known):
            raise UserError(
                f"{source} links to {link[1]}, which is neither a page of the site nor a file to copy there"
            )
        if target not in known:
            files.add(target)
        there = posixpath.relpath(place(target), posixpath.dirname(known[source]) or ".")
        return f"]({there}{link[2] or ''})"

    pieces = CODE.split(text)  # code at odd places
    return "".join(piece if i % 2 else LINK.sub(moved, piece) for i, piece in enumerate(pieces)), files


def with_mathml(text: str) -> str:
    """The text with each block of ``math`` as MathML; one line of the block is one equation."""
    from latex2mathml.converter import convert

    def drawn(block: re.Match[str]) -> str:
        return "\n\n".join(convert(line, display="block") for line in block[1].splitlines() if line.strip())

    return EQUATION.sub(drawn, text)


def collect(target: Path) -> None:
    """Write the pages and the files that they link to into ``target``, in place of what was there."""
    if importlib.util.find_spec("latex2mathml") is None:
        raise UserError("the site needs the packages of requirements-docs.txt, which make docs installs")
    shutil.rmtree(target, ignore_errors=True)
    copied: set[str] = set()
    for source, there in pages().items():
        text, files = with_site_links((ROOT / source).read_text(encoding="utf-8"), source)
        copied |= files
        (target / there).parent.mkdir(parents=True, exist_ok=True)
        (target / there).write_text(with_mathml(text), encoding="utf-8")
    for name in sorted(copied):
        (target / place(name)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / place(name))


if __name__ == "__main__":
    run_cli(lambda: collect(TARGET))
