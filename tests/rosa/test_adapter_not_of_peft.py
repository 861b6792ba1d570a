"""What this library's own functions do to a model of ``get_peft_model``: they refuse it, and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rosa
from tests.rosa.cases import digests
from tests.rosa.peft_models import adapt_by_peft, trained

pytest.importorskip("peft", reason="peft is not installed")


def entered(context: Any) -> None:
    with context:
        pass


CALLS: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "merge": (lambda model, folder: rosa.merge(model), "merge_adapter"),
    "unmerge": (lambda model, folder: rosa.unmerge(model), "unmerge_adapter"),
    "unwrap": (lambda model, folder: rosa.unwrap(model), "merge_and_unload"),
    "merged": (lambda model, folder: entered(rosa.merged(model)), "merge_adapter"),
    "disabled": (lambda model, folder: entered(rosa.disabled(model)), "disable_adapter"),
    "export": (lambda model, folder: rosa.export(model, folder), "merge_and_unload"),
    "save_adapter": (lambda model, folder: rosa.save_adapter(model, folder), "save_pretrained"),
    "load_adapter": (lambda model, folder: rosa.load_adapter(model, folder), "load_adapter"),
    "inject": (lambda model, folder: rosa.inject(model, rosa.RosaConfig(rank=2)), "merge_and_unload"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_model_of_peft_is_one_error_that_names_its_own_method(name: str, tmp_path: Path) -> None:
    call, method = CALLS[name]
    model, folder = trained(resamples=1), tmp_path / "folder"
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=f"adapters of the library peft.*{method}"):
        call(model, folder)
    with pytest.raises(rosa.AdapterError, match="adapters of the library peft"):
        call(model.base_model.model, folder)  # without PEFT's wrapper
    assert digests(model) == before and not folder.exists()


def test_it_still_resamples() -> None:
    model = adapt_by_peft()
    assert model.base_model.after_epoch(1) and rosa.parameter_groups(model)
