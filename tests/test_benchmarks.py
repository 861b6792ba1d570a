"""The benchmark's own parts: equal work on both sides, and pages that say what the files of measurements hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import growth, report, resampling, training
from benchmarks.common import Settings
from benchmarks.run import part_modules
from tests.conftest import ROOT
from tests.rosa.cases import make_model
from utils.tokens.encoding import Encoded, Sample

RESULTS = ROOT / "benchmarks" / "results"
CONTEXT = {
    "command": "python benchmarks/run.py --only train",
    "measured": "2026-01-01T00:00:00+00:00",
    "versions": {"torch": "2.9", "transformers": "5.0"},
    "hardware": {"device": "cpu", "name": "Some CPU", "cores": 2},
    "threads": 2,
}


def some_samples() -> Encoded:
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 9), (6, 17), (2, 5), (8, 25)]
    return Encoded(
        [Sample(torch.randint(1, 60, (size,), generator=generator).tolist(), prompt, 1, 1) for prompt, size in sizes], 0
    )


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> training.Ways:
    """The ways on a tiny model in place of GPT-2 small."""
    monkeypatch.setattr(training, "gpt2_small", lambda attention, dropout: make_model("gpt2"))
    settings = Settings(torch.device("cpu"), True, None, "tiny")
    return training.Ways(settings, some_samples(), pad_id=0, dropout=0.0)


@pytest.mark.parametrize("name", ["plain rosa", "peft", "full", "lora", "rosa"])
def test_all_ways_start_at_the_loss_of_the_plain_one(maker: training.Ways, name: str) -> None:
    indices = [0, 1, 2, 3]
    plain = maker.build("plain").step(indices)
    assert float(maker.build(name).step(indices)) == pytest.approx(float(plain), abs=1e-5)


@pytest.mark.parametrize(("plain", "own"), [("plain", "lora"), ("plain rosa", "rosa")])
def test_training_both_ways_gives_the_same_losses(maker: training.Ways, plain: str, own: str) -> None:
    traces = [[float(way.step([number % 4, 3])) for number in range(6)] for way in map(maker.build, (plain, own))]
    assert traces[0] == pytest.approx(traces[1], abs=1e-4)
    assert len(set(traces[0])) > 3


def test_the_plain_layers_do_not_take_the_fused_product(maker: training.Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the fused product")

    monkeypatch.setattr("rosa.layers.adapted_product", refused)
    maker.build("plain").step([0, 1])
    with pytest.raises(AssertionError, match="fused"):
        maker.build("lora").step([0, 1])


def test_the_plain_resample_trains_the_subspace_that_ours_does() -> None:
    import rosa

    pairs = []
    for way in ("plain", "ours"):
        model = rosa.inject(make_model("gpt2", dtype=torch.float64), rosa.RosaConfig(rank=3))
        layers = list(rosa.adapter_layers(model).values())
        if way == "plain":
            for layer in layers:
                resampling.plain_resample(layer, 5)
        else:
            rosa.resample(model, 5)
        pairs.append([(layer.A @ layer.B).detach() for layer in layers])
    for plain, ours in zip(*pairs, strict=True):
        torch.testing.assert_close(plain, ours, atol=1e-9, rtol=0)


def test_exponents_are_slopes_of_logarithms() -> None:
    assert growth.exponent([(size, 3.0 * size**1.5) for size in (1, 4, 16)]) == pytest.approx(1.5)
    assert growth.exponent([(1, 2.0), (4, 2.0), (16, 2.0)]) == pytest.approx(0)


def test_ratios_are_those_of_the_figures(tmp_path: Path) -> None:
    train = {"batch_size": 16, "samples_per_second": {"plain": 2, "plain rosa": 4, "peft": 5, "lora": 6, "rosa": 9}}
    rows = [
        {"method": method, "batch": "8x64", "checkpointing": saves, "peak_mib": mib, "ratio": mib / 100}
        | {"seconds_per_step": seconds}
        for method, saves, mib, seconds in (
            ("plain", False, 100, 8.0), ("peft", False, 50, 4.0), ("lora", False, 25, 2.0), ("rosa", True, 10, 16.0)
        )
    ]  # fmt: skip
    for name, figures in (("train", train), ("memory", {"rows": rows}), ("train-cpu-quick", {})):
        stem = name if "-" in name else f"{name}-cpu"
        (tmp_path / f"{stem}.json").write_text(json.dumps({**CONTEXT, "figures": figures}))
    table = report.ratios(report.read_results(tmp_path))
    assert [[row[0], *row[2:]] for row in table[1:]] == [
        ["peak memory, 8x64", "0.50", "0.25", "–"],
        ["steps/s, 8x64", "2.00", "4.00", "–"],
        ["peak memory, 8x64, gradient checkpointing", "–", "–", "0.10"],
        ["steps/s, 8x64, gradient checkpointing", "–", "–", "0.50"],
        ["E2E training, samples/s, batch 16", "2.50", "3.00", "2.25"],
    ]
    assert {row[1] for row in table[1:]} == {"2 cores, Some CPU"}


def test_the_pages_show_the_files_that_lie_beside_them(tmp_path: Path) -> None:
    """The tables of the repository are written by its command from its JSON files, not by hand."""
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tables = {part: module.table for part, module in part_modules().items()}
    assert report.write_page(tmp_path, tables).read_text() == (RESULTS / "README.md").read_text()
    assert report.markdown(report.ratios(report.read_results(RESULTS))) in (ROOT / "README.md").read_text()
