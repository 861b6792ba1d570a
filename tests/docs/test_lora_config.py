"""The table of PEFT's LoRA options on docs/peft.md names options that there are, on both sides."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import Any

import pytest

import rosa
from scripts.docs.collect import ROOT

peft = pytest.importorskip("peft")

SECTION = (
    (ROOT / "docs" / "peft.md").read_text(encoding="utf-8").partition("## From LoraConfig")[2].partition("\n## ")[0]
)
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| `")][1:]


def settings(cell: str) -> list[tuple[str, dict[str, Any]]]:
    """Each piece of code in a cell that sets something: a class, or "", and the settings."""
    found = []
    for code in re.findall(r"`([^`]*)`", cell):
        call = re.fullmatch(r"(?:rosa\.(\w+Config)\()?(\w+=.*?|)\)?", code)
        if call:
            keywords = ast.parse(f"f({call[2]})", mode="eval").body.keywords  # type: ignore[attr-defined]
            found.append((call[1] or "", {word.arg: ast.literal_eval(word.value) for word in keywords}))
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].partition("=")[0].strip("`"))
def test_a_row_is_true_of_both_classes(row: list[str]) -> None:
    from peft.optimizers import create_loraplus_optimizer

    from rosa.integrations.peft import RosaConfig

    theirs, here, in_peft = map(settings, row)
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known |= inspect.signature(create_loraplus_optimizer).parameters.keys()
    ((_, option),) = theirs
    assert option.keys() <= known and row[1].startswith("–") == (not here) and (row[2] == "–") == (not in_peft)
    for name, values in here:
        config = getattr(rosa, name or "LoraConfig")(**({} if name else {"alpha": 8}) | values)
        assert not config.problems()
    for _, values in in_peft:
        RosaConfig(**values)
    if not in_peft:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            RosaConfig(**option)
    if not here:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            rosa.LoraConfig(**option)


def test_the_defaults_are_those_that_the_table_says() -> None:
    from rosa.integrations.peft import RosaConfig

    defaults = {"peft": peft.LoraConfig(), "here": rosa.LoraConfig(), "in_peft": RosaConfig()}
    assert (defaults["peft"].r, defaults["peft"].lora_alpha, defaults["peft"].bias) == (8, 8, "none")
    assert (defaults["here"].rank, defaults["here"].alpha, defaults["here"].bias) == (0.05, None, "auto")
    assert (defaults["in_peft"].r, defaults["in_peft"].bias) == (8, "none")
    with_biases = [config for config, _ in rosa.methods.methods().values() if config().trains_bias]
    assert sorted(config.label for config in with_biases) == ["BitFit", "ROSA"]
