"""The benchmark's own parts: equal work on both sides, and pages that say what the files of measurements hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import generating, growth, report, resampling, training, turns, ways
from benchmarks.common import Settings
from benchmarks.run import part_modules
from tests.conftest import ROOT
from tests.rosa.cases import make_model
from utils.errors import UserError
from utils.models.loading import BUNDLED, load_model, load_tokenizer

RESULTS = ROOT / "benchmarks" / "results"
CONTEXT = {
    "command": "python benchmarks/run.py --only train",
    "measured": "2026-01-01T00:00:00+00:00",
    "versions": {"torch": "2.9", "transformers": "5.0"},
    "hardware": {"device": "cpu", "name": "Some CPU", "cores": 2},
    "threads": 2,
}


SHOUTING = """
import json, sys
task = json.loads(sys.stdin.readline())
print("a line for the log")
losses = [float(len(task["check"]))]
print(json.dumps({"batches": "sorted", "precision": "bf16", "losses": losses}), flush=True)
for line in sys.stdin:
    if line.strip() == "9":
        sys.exit(3)
    print(json.dumps({"loss": len(task["batches"]["sorted"][int(line)]), "peak_mib": 7.0}), flush=True)
"""


@pytest.fixture
def task(small_model: Path) -> ways.Task:
    """Four samples for the small model in place of GPT-2 small, without dropout."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 9), (6, 17), (2, 5), (8, 25)]
    samples = [(torch.randint(1, 60, (size,), generator=generator).tolist(), prompt) for prompt, size in sizes]
    batches = {"random": [samples, samples[:1]], "sorted": [samples[:2], samples[2:], samples[:1]]}
    return ways.Task("", str(small_model), "cpu", 0.1, 0.0, batches, samples)


def built(task: ways.Task, name: str) -> ways.Way:
    return ways.build(dataclasses.replace(task, way=name))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["plain-rosa", "documented", "expert", "full", "lora", "rosa"])
def test_all_ways_start_at_the_loss_of_the_plain_one(task: ways.Task, kind: str, precision: str) -> None:
    plain = built(task, "plain fp32").step(task.check)
    tolerance = 1e-5 if precision == "fp32" else training.TOLERANCE["bf16"]
    assert built(task, f"{kind} {precision}").step(task.check) == pytest.approx(plain, abs=tolerance)


@pytest.mark.parametrize(
    ("plain", "own"), [("plain", "lora"), ("plain-rosa", "rosa"), ("plain", "documented"), ("plain", "expert")]
)
def test_training_both_ways_gives_the_same_losses(task: ways.Task, plain: str, own: str) -> None:
    one, two = (built(task, f"{name} fp32") for name in (plain, own))
    traces = [[way.step([task.check[number % 4], task.check[3]]) for number in range(6)] for way in (one, two)]
    assert traces[0] == pytest.approx(traces[1], abs=1e-4)
    assert len(set(traces[0])) > 3


def test_losses_are_compared_without_dropout_which_training_then_has(task: ways.Task) -> None:
    with_dropout, without = (built(dataclasses.replace(task, dropout=dropout), "plain fp32") for dropout in (0.5, 0.0))
    assert with_dropout.losses_without_dropout(task.check) == without.losses_without_dropout(task.check)
    assert with_dropout.step(task.check) != pytest.approx(without.step(task.check), abs=1e-4)


def test_the_plain_layers_do_not_take_the_fused_product(task: ways.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the fused product")

    monkeypatch.setattr("rosa.layers.adapted_product", refused)
    built(task, "plain fp32").step(task.check)
    with pytest.raises(Exception, match="the fused product"):
        built(task, "lora fp32").step(task.check)


def test_any_command_takes_its_turns(task: ways.Task) -> None:
    command = f"{sys.executable} -c {shlex.quote(SHOUTING)}"
    found = turns.take_turns({"one": command, "two": command}, task, count=2, rounds=2)
    for name in ("one", "two"):
        assert found[name].ready == {"batches": "sorted", "precision": "bf16", "losses": [4.0]}  # of the first round
        assert [len(times) for times in found[name].seconds] == [2, 2]
        assert found[name].peak_mib == 7.0
    ended = pytest.raises(UserError, match="its process ended with exit code 3")
    with contextlib.closing(turns.Trainer(command, task)) as started, ended:
        started.ask("9")
    assert started.process.returncode == 3


def test_the_operations_of_a_sample_are_those_of_its_layers(tmp_path: Path) -> None:
    """GPT-2 small: 85M weights in the blocks, 11.2M in pairs of rank 76, 38.6M in the head."""
    from transformers import GPT2Config

    GPT2Config().save_pretrained(tmp_path)
    task = ways.Task("", str(tmp_path), "cpu", 0.1, 0.1, {}, [])
    layers, pairs, head = 84_934_656, 11_206_656, 38_597_376
    assert training.flop(task, "lora", 60, 25) == pytest.approx(60 * (4 * layers + 6 * pairs) + 25 * 4 * head)
    assert training.flop(task, "full", 60, 25) == pytest.approx(6 * (60 * layers + 25 * head))


def test_a_row_says_what_its_seconds_mean(task: ways.Task) -> None:
    ready = {"batches": "sorted", "method": "lora", "precision": "bf16", "flop": 3e9}  # 2 steps: 6 GFLOP
    row, rates = training._row(task, ready, [[0.5, 1.5], [1.0, 3.0], [2.0, 2.0]], peak=[30.0, 30.0, 15.0])
    assert rates == [2.0, 1.0, 1.0]
    assert row["samples_per_second"] == {"median": 1.0, "min": 1.0, "max": 2.0}
    assert row["tokens_per_second"] == {"median": 14.0, "min": 14.0, "max": 28.0}
    assert row["share_of_peak"] == {"median": 0.1, "min": 0.05, "max": 0.1}
    assert row["computed_per_real_token"] == pytest.approx((2 * 17 + 2 * 25) / 56, abs=1e-3)


def test_ways_are_compared_within_a_round(task: ways.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"plain fp32": [4.0, 6.0, 8.0], "expert fp32": [2.0, 2.0, 2.0], "lora fp32": [1.0, 2.0, 4.0]}
    losses = {"plain-rosa fp32": [2.0, 1.0], "rosa fp32": [2.0, 1.5], "full fp32": [3.0, 9.0]}

    def ready(name: str) -> dict[str, Any]:
        method, precision = name.split()
        own = {"batches": "random", "losses": losses.get(name, [3.0, 2.0]), "flop": 1e9}
        return {**own, "method": method, "precision": precision}

    def fake_turns(commands: dict[str, Any], task: ways.Task, count: int, rounds: int) -> dict[str, turns.Turns]:
        values = {name: seconds.get(name, [1.0] * rounds) for name in commands}
        return {name: turns.Turns(ready(name), [[value] for value in own], 100.0) for name, own in values.items()}

    def fake_trainer(command: Any, task: ways.Task) -> Any:
        return SimpleNamespace(ready=ready(task.way), close=lambda: None)

    monkeypatch.setattr(training, "Trainer", fake_trainer)
    monkeypatch.setattr(training, "take_turns", fake_turns)
    found = training.compare(task, rounds=3)
    assert found["rows"]["lora fp32"]["of_plain"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["rows"]["lora fp32"]["of_expert"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert found["rows"]["rosa fp32"]["peak_mib"] == pytest.approx(100, abs=1)  # the model has a third of a MiB
    assert found["loss_differences"]["full fp32"] == 0  # its second loss is another
    assert found["loss_differences"]["rosa fp32"] == 0.5 and found["losses_equal"] is False
    assert training.table({"batch_size": 4, **found})[3][:3] == ["PEFT's LoRA, by an expert", "fp32", "2.00"]


def test_both_generate_the_same_texts_of_the_bundled_model() -> None:
    from transformers import AutoModelForCausalLM

    settings = Settings(torch.device("cpu"), True, None, "tiny")
    theirs = AutoModelForCausalLM.from_pretrained(BUNDLED["tiny"])
    size = generating.Size(prompts=4, alone=2, tokens=6, rounds=1, batch=3, beams=2)
    prompts = generating.prompts(settings, size.prompts)
    found = generating.Generation(settings, theirs, load_model("tiny"), load_tokenizer("tiny"), prompts, size).measure()
    assert found["against_batched"]["predictions_equal"] and found["against_one_by_one"]["predictions_equal"]
    assert set(found["times_as_fast"]) == {"batched fp32", "batched bf16", "one by one fp32"}


def test_speed_is_compared_round_by_round_in_the_same_precision() -> None:
    seconds = {
        "batched fp32": [6.0, 8.0, 9.0], "project fp32": [2.0, 4.0, 3.0], "project bf16": [1.0, 1.0, 2.0],
        "batched bf16": [5.0, 4.0, 6.0], "one by one fp32": [12.0],
    }  # fmt: skip
    assert generating.ratios(seconds) == {
        "batched fp32": {"median": 3.0, "min": 2.0, "max": 3.0},
        "batched bf16": {"median": 4.0, "min": 3.0, "max": 5.0},
        "one by one fp32": {"median": 4.0, "min": 3.0, "max": 6.0},
    }


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


def test_growth_is_measured_over_data_models_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(given: Any) -> dict[str, Any]:
        if given.shape == "gpt2-large":
            return {"error": "out of memory"}
        size = growth.SHAPES[given.shape][0]
        costs = {"seconds": [size * given.rank**0.5], "setup_seconds": size**3, "peak_mib": given.rank}
        return {"parameters": size**2, **costs}

    monkeypatch.setattr(growth, "run", row)
    found = {"encode_seconds": 1.0, "train_seconds": 2.0, "peak_mib": 3.0}
    monkeypatch.setattr(growth, "_in_own_process", lambda samples, _: {"samples": samples, **found})
    figures = growth.measure(Settings(torch.device("cpu"), False, None, "tiny"))
    assert figures["data"]["exponents"] == {"encode_seconds": 0, "train_seconds": 0, "peak_mib": 0}
    assert figures["shapes"]["exponents"] == {"step_seconds": 0.5, "factorise_seconds": 1.5, "peak_mib": 0}
    assert figures["ranks"]["exponents"] == {"step_seconds": 0.5, "factorise_seconds": 0, "peak_mib": 1}
    labels = [line[0] for line in growth.table(figures)]
    assert "gpt2, rank ratio 0.4" in labels and "exponent over ranks" in labels


def test_ratios_are_those_of_the_figures(tmp_path: Path) -> None:
    speeds = {
        "expert fp32": (2.5, 1.0), "lora fp32": (3.0, 1.2), "rosa fp32": (2.25, 0.9),
        "documented fp32": (1.5, 0.6), "lora bf16": (9.0, 1.5), "full bf16": (8.0, 1.4),
    }  # fmt: skip
    fast = {name: {"of_plain": {"median": a}, "of_expert": {"median": b}} for name, (a, b) in speeds.items()}
    train = {"batch_size": 16, "rows": fast}
    times = {"batched fp32": {"median": 3.4}, "one by one fp32": {"median": 8.3}}
    generate = {"models": {"gpt2": {"prompts": 24, "beams": 10, "times_as_fast": times}}}
    rows = [
        {"method": method, "batch": "8x64", "checkpointing": saves, "peak_mib": mib, "ratio": mib / 100}
        | {"seconds_per_step": seconds}
        for method, saves, mib, seconds in (
            ("plain", False, 100, 8.0), ("peft", False, 50, 4.0), ("lora", False, 25, 2.0), ("rosa", True, 10, 16.0)
        )
    ]  # fmt: skip
    parts = {"train": train, "generate": generate, "memory": {"rows": rows}, "train-cpu-quick": {}}
    for name, figures in parts.items():
        stem = name if "-" in name else f"{name}-cpu"
        (tmp_path / f"{stem}.json").write_text(json.dumps({**CONTEXT, "figures": figures}))
    table = report.ratios(report.read_results(tmp_path))
    assert [[row[0], *row[2:]] for row in table[1:]] == [
        ["generating, 24 MRs, 10 beams, fp32, against `generate` in batches", "–", "3.40", "3.40"],
        ["generating, 24 MRs, 10 beams, fp32, against `generate` one by one", "–", "8.30", "8.30"],
        ["peak memory, 8x64", "0.50", "0.25", "–"],
        ["steps/s, 8x64", "2.00", "4.00", "–"],
        ["peak memory, 8x64, gradient checkpointing", "–", "–", "0.10"],
        ["steps/s, 8x64, gradient checkpointing", "–", "–", "0.50"],
        ["E2E training, samples/s, batch 16, fp32", "2.50", "3.00", "2.25"],
        ["E2E training, samples/s, batch 16, fp32, against PEFT by an expert", "1.00", "1.20", "0.90"],
        ["E2E training, samples/s, batch 16, bf16", "–", "9.00", "–"],
        ["E2E training, samples/s, batch 16, bf16, against PEFT by an expert", "–", "1.50", "–"],
    ]
    assert {row[1] for row in table[1:]} == {"2 cores, Some CPU"}


def test_the_pages_show_the_files_that_lie_beside_them(tmp_path: Path) -> None:
    """The tables of the repository are written by its command from its JSON files, not by hand."""
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tables = {part: module.table for part, module in part_modules().items()}
    assert report.write_page(tmp_path, tables).read_text() == (RESULTS / "README.md").read_text()
