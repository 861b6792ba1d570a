"""The models that docs/library.md lists are those that are tested."""

from __future__ import annotations

import re

from scripts.docs.collect import ROOT
from tests.rosa.test_adapter_architectures import CAUSAL, MASKED, SEQ2SEQ, TABLE

KNOWN_AS = {"cohere": "Command R", "gemma3_text": "Gemma 3", "hunyuan_v1_moe": "Hunyuan-MoE"}  # others as their type
KINDS = {"decoders": CAUSAL, "encoder-decoders": SEQ2SEQ, "encoders": MASKED}


def plain(name: str) -> str:
    """A name without capitals, spaces and signs, as GPT-2 and gpt2 are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def test_the_models_on_the_page_are_those_of_the_tests() -> None:
    text = " ".join((ROOT / "docs" / "library.md").read_text(encoding="utf-8").partition("## Models\n")[2].split())
    for kind, table in KINDS.items():
        (listed,) = re.findall(rf"the {kind} (.*?)[.;]", text)
        assert list(map(plain, re.split(r", | and ", listed))) == [plain(KNOWN_AS.get(name, name)) for name in table]


def test_the_pages_count_the_models_that_are_tested() -> None:
    for page in ("library", "features"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert re.findall(r"(\d+) architectures", text) == [str(len(TABLE))]
