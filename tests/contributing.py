"""The examples of CONTRIBUTING.md, which the tests run as they are printed there."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(path: str) -> str:
    """The code block of CONTRIBUTING.md whose first line names ``path``."""
    (text,) = re.findall(rf"```\w+\n(# {re.escape(path)}\b.*?)```", PAGE, re.S)
    return str(text)


def inline(start: str) -> str:
    """The code within a sentence of CONTRIBUTING.md that begins with ``start``."""
    (text,) = re.findall(rf"`({re.escape(start)}[^`]*)`", PAGE)
    return str(text)
