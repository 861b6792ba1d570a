"""The Python examples of the pages and of the README run as they are printed, with the bundled model as the hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.docs.collect import ROOT
from tests.docs.blocks import of_language
from utils.models.loading import BUNDLED

PYTHON = of_language("python")
STAND_INS = {'"gpt2"': repr(str(BUNDLED["tiny"]))}  # a hub's name: a model that is here
HUB = "# needs the hub"


@pytest.mark.parametrize("page", PYTHON)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page one after the other, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in PYTHON[page]:
        text = block.text
        for name, stand_in in STAND_INS.items():
            text = text.replace(name, stand_in)
        code = compile("\n" * (block.line - 1) + text, page, "exec")
        if not text.startswith(HUB):
            exec(code, names)
