"""The example files of CONTRIBUTING.md, which the tests run as they are printed there."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def example(path: str) -> str:
    """The code block of CONTRIBUTING.md whose first line names ``path``."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"```python\n(# {re.escape(path)}\n.*?)```", page, re.S)
    return str(text)
