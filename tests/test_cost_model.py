"""The model of costs: its page, and its formulas against counts of parameters and FLOP."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rosa
from benchmarks import cost_model
from tests.conftest import ROOT
from tests.rosa.cases import make_model
from utils.models import attention
from utils.models.token_loss import TokenLoss


def test_the_page_of_costs_is_made_of_the_records() -> None:
    text = cost_model.PAGE.read_text()
    assert cost_model.page(text, ROOT / "benchmarks" / "results") == text


def test_modelled_shapes_have_the_published_numbers_of_parameters() -> None:
    parameters = {name: cost_model.sizes_of(model).parameters for name, (model, _) in cost_model.bare_models().items()}
    assert parameters == {"GPT-2 XL": 1_557_611_200, "Llama 1B": 1_235_814_400}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["full", "split", "summed"])
def test_modelled_flop_are_those_of_the_products(family: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch counts each product of a step. Adapters need no gradient of the first block's inputs."""
    monkeypatch.setattr(attention, "SHORT", 0)  # attention as one operation, which is not counted here
    model, ids = make_model(family), torch.arange(24).view(2, 12)
    if form != "full":
        rosa.inject(model, rosa.RosaConfig(rank=4))
    sizes, positions = cost_model.sizes_of(model), torch.tensor([1, 2, 15])
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **options: 2 * a[0] * a[1] * b[1]}  # PyTorch counts it not
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter, torch.autocast("cpu", torch.bfloat16, enabled=form == "summed"):  # which sums W + A B
        TokenLoss(model)(ids, positions, ids.flatten()[positions + 1])[0].backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(flop for op, flop in counts.items() if "attention" not in str(op))
    first = sizes.layers[: {"gpt2": 1, "llama": 3}[family]] if form != "full" else ()
    spared = sum(2 * ids.numel() * layer.m * (layer.n + (layer.rank if form == "split" else 0)) for layer in first)
    assert counted == cost_model.flop(sizes, ids.numel(), len(positions), 0, 1, sharded=form == "split") - spared
