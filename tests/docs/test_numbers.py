"""Numbers on the pages are those of the records, rounded."""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections import defaultdict
from typing import Any

import pytest

from scripts.docs.collect import ROOT
from studies import report as reports
from studies.measured import label
from studies.report import PART
from tests.rosa.test_adapter_oracles import PUBLISHED
from utils.config.fnmodel import LAYERS_ONLY
from utils.results.aggregate import compute_statistics, rows_of
from utils.results.columns import all_columns
from utils.results.read import Result, read_results
from utils.text import replace_part

SAMPLES = 42_061 * 5  # of E2E in five epochs
load, report = functools.cache(reports.load), functools.cache(reports.report)


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def figures(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))["figures"]


CAPACITY = {
    "LoRA, rank 1": "LoRA r=1",
    "LoRA, rank 4": "LoRA r=4",
    "LoRA, rank 2": "LoRA r=2",
    "ROSA, rank 1, never resampled": "ROSA r=1, never",
    "ROSA, rank 1, a resample every 100 steps": "ROSA r=1, every 100 steps",
    "ROSA, rank 1, a resample every 12 steps": "ROSA r=1, every 12 steps",
    "full training of the same layers": "full, layers only",
}
PRETRAINED = {
    "LoRA of rank 4": "LoRA r=4",
    "LoRA of rank 8": "LoRA r=8",
    "LoRA of rank 16, at a rate next to failure, to be run again": "LoRA r=16",
    "ReLoRA of rank 4, a resample every 50 steps": "ReLoRA r=4, every 50 steps, rewarm_steps=3",
    "ROSA of rank 4, never resampled": "ROSA r=4, never",
    "ROSA of rank 4, a resample every 50 steps": "ROSA r=4, every 50 steps",
    "full training of the matrix": "full, layers only",
}


RANK_1 = {
    "LoRA of rank 1": "LoRA r=1",
    "ROSA of rank 1, never resampled": "ROSA r=1, never",
    "ROSA of rank 1, a resample every 100 steps": "ROSA r=1, every 100 steps",
    "ROSA of rank 1, a resample every 200 steps": "ROSA r=1, every 200 steps",
    "ROSA of rank 1, every 100 steps, each with a ramp of 3 steps": "ROSA r=1, every 100 steps, rewarm_steps=3",
    "ReLoRA of rank 1, every 100 steps": "ReLoRA r=1, every 100 steps, rewarm_steps=3",
    "ReLoRA of rank 1, every 200 steps": "ReLoRA r=1, every 200 steps, rewarm_steps=3",
    "LoRA of rank 2": "LoRA r=2",
    "LoRA of rank 4, 40 numbers": "LoRA r=4",
    "full training of the matrix, 40 numbers": "full, layers only",
}


@pytest.mark.parametrize(
    ("study", "keys", "ways"),
    [("capacity", "800", CAPACITY), ("pretrained", "160", PRETRAINED), ("pretrained", "40", RANK_1)],
)
def test_the_choice_of_a_method_rests_on_the_records_of_a_study(study: str, keys: str, ways: dict[str, str]) -> None:
    tables = report(ROOT / "studies" / study / "records")
    reported = {row[1]: row for row in cells(tables.split("Reported seeds")[1]) if row[0] == keys}
    shown = {row[0]: row[1:] for row in cells((ROOT / "docs/which-method.md").read_text("utf-8")) if len(row) == 4}
    for words, way in ways.items():
        trained, bits, share = shown[words]
        assert [trained, bits] == [reported[way][2], reported[way][5]]
        assert reported[way][6].startswith(share.replace(" %", "%").replace("−", "-")), way


CAPACITY_BITS, PRETRAINED_BITS = ("capacity/records", 800), ("pretrained/records", 40)
FACE = {  # the records of each row, their numbers (0: losses), the ranks, and ROSA as the tables of the study name it
    "GPT 0.2M, random numbers, bits ↑": (*CAPACITY_BITS, 1, ", every 12 steps"),
    "tiny GPT-2, generated restaurants, loss ↓": ("bundled/records-rank4", 0, 4, ", every epoch"),
    "tiny GPT-2, ELI5, loss ↓": ("bundled/records-eli5", 0, 4, ", every epoch"),
    "SmolLM2-135M, last block, E2E, loss ↓": ("pretrained/records-epochs", 0, 1, ", every 100 steps"),
    "SmolLM2-135M, all layers, E2E, loss ↓": ("pretrained/records-e2e", 0, 8, ", every 50 steps"),
    "SmolLM2-135M, all layers, E2E, loss ↓ 1": ("pretrained/records-e2e", 0, 1, ", every 50 steps"),
    "SmolLM2-135M, last matrix, random numbers, bits ↑": (*PRETRAINED_BITS, 4, ", every 100 steps"),
}


def seeds(records: str, keys: int) -> dict[str, dict[int, float]]:
    """Bits or losses of the reported seeds of each method, of books of ``keys`` numbers."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for run in load(ROOT / "studies" / records):
        if not run.trial and run.way.keys == keys:
            found[label(run.way)][run.seed] = run.loss if run.bits is None else run.bits
    return found


def test_the_results_on_the_face_of_the_project() -> None:
    rows = [row for row in cells((ROOT / "README.md").read_text(encoding="utf-8")) if len(row) == 7][2:]
    assert [row[0] for row in rows] == [name.removesuffix(" 1") for name in FACE]
    for row, (records, keys, rank, rosa) in zip(rows, FACE.values(), strict=True):
        ways = (
            f"LoRA r={rank}",
            f"ROSA r={rank}{rosa}",
            f"LoRA r={2 * rank}",
            f"LoRA r={4 * rank}",
            "full, layers only",
        )
        found = seeds(records, keys)
        assert row[1].startswith(f"{rank}, ") and {len(found[way]) for way in ways} == {5 if keys == 800 else 3}
        medians = [statistics.median(found[way].values()) for way in ways]
        assert row[2:] == [f"{value:,.0f}" if keys else f"{value:.3f}" for value in medians]


EPOCH, RANDOM, RELORA = "every epoch", "basis=random", "rewarm_steps=3"
PAIRED = [  # in the order of the page: the records, their numbers, and the two methods
    ("bundled/records-eli5", 0, f"ROSA r=4, {EPOCH}", "LoRA r=4"),
    ("pretrained/records-epochs", 0, "ROSA r=1, every 100 steps", "LoRA r=1"),
    ("pretrained/records-e2e", 0, "ROSA r=8, every 50 steps", "LoRA r=8"),
    ("pretrained/records", 40, "ROSA r=4, every 100 steps", "LoRA r=4"),
    ("pretrained/records", 160, "ROSA r=4, every 200 steps", "LoRA r=4"),
    ("pretrained/records", 160, f"ROSA r=4, every 200 steps, {RANDOM}", "LoRA r=4"),
    ("pretrained/records", 160, f"ROSA r=4, every 200 steps, {RANDOM}", "ROSA r=4, every 200 steps"),
    ("pretrained/records", 160, f"ROSA r=4, every 50 steps, {RANDOM}", "ROSA r=4, every 50 steps"),
    ("pretrained/records", 40, f"ROSA r=1, every 100 steps, {RANDOM}", "ROSA r=1, every 100 steps"),
    ("bundled/records-rank4", 0, f"ROSA r=4, {EPOCH} {RANDOM}", f"ROSA r=4, {EPOCH}"),
    ("capacity/records", 800, f"ROSA r=1, every 12 steps, {RANDOM}", "ROSA r=1, every 12 steps"),
    ("pretrained/records", 40, f"ReLoRA r=1, every 100 steps, {RELORA}", "ROSA r=1, every 100 steps"),
    ("pretrained/records", 40, f"ReLoRA r=1, every 200 steps, {RELORA}", "ROSA r=1, every 200 steps"),
]


def test_the_paired_tests_are_those_of_the_records() -> None:
    page = (ROOT / "docs" / "which-method.md").read_text(encoding="utf-8")
    rows = cells(page.partition("| compared | mean difference | p |")[2].partition("\n\n")[0])[1:]
    for row, (records, keys, one, other) in zip(rows, PAIRED, strict=True):
        found = seeds(records, keys)
        differences = [found[one][seed] - value for seed, value in found[other].items()]
        mean = statistics.fmean(differences)
        t = abs(mean) / (statistics.stdev(differences) / len(differences) ** 0.5)
        tail = t / (len(differences) - 1 + t * t) ** 0.5  # Student's distribution in closed form, with 2 and 4 degrees
        p = 1 - tail * {3: 1.0, 5: 1 + (1 - tail**2) / 2}[len(differences)]
        assert row[1:] == [f"{mean:.0f}".replace("-", "−") if keys else f"{mean:.3f}".replace("-", "−"), f"{p:.2f}"]


def test_the_speed_against_peft_is_that_of_the_measurements() -> None:
    shown = {row[0]: row[1:] for row in cells((ROOT / "docs" / "cost.md").read_text(encoding="utf-8")) if len(row) == 3}
    for batch in (32, 64):
        rows = figures(f"train-cpu-batch{batch}.json")["rows"]
        for name, precision in (("float32", "fp32"), ("bfloat16", "bf16")):
            ratios = [rows[f"{method} {precision}"]["of_expert"] for method in ("lora", "rosa")]
            assert shown[f"{batch}, {name}"] == [f"{x['median']:.2f} ({x['min']:.2f}–{x['max']:.2f})" for x in ratios]


@pytest.mark.parametrize(
    ("records", "least"),
    [(f"capacity/records{one}", 5) for one in ("-clipped", "-book-2")]
    + [(f"pretrained/records{one}", 10) for one in ("", "-e2e", "-epochs")]
    + [("capacity/records", 10), ("bundled/records-rank4", 10), ("bundled/records-eli5", 10)]
    + [(f"bundled/records-no-decay{one}", 3) for one in ("", "-eli5")],
)
def test_the_page_of_a_study_has_the_tables_of_its_records(records: str, least: int) -> None:
    folder = ROOT / "studies" / records
    page, tables = (folder.parent / "README.md").read_text(encoding="utf-8"), report(folder)
    assert tables.count("\n|") > least and replace_part(page, PART.format(folder.name), tables) == page


def test_the_short_runs_are_those_of_the_records() -> None:
    """On two pages, seed by seed on that of the study; and the demo trains at the rates that the search chose."""
    found: dict[str, dict[int, Result]] = defaultdict(dict)
    for result in read_results([ROOT / "studies" / "bundled" / "records"])[0]:
        if not result.trial:
            found[short_run(result)][int(result.seed)] = result
    page, choice = (
        {row[0]: row[1:] for row in cells((ROOT / name).read_text(encoding="utf-8")) if len(row) == width}
        for name, width in (("studies/bundled/README.md", 7), ("docs/which-method.md", 3))
    )
    assert len(found) >= 6 and found.keys() <= page.keys()
    for name, runs in found.items():
        losses = [runs[seed].number("best", "loss_target") or 0.0 for seed in (0, 1, 2)]
        trained = f"{runs[0].number('parameters', 'trainable'):,}"
        shown = [f"{loss:.4f}" for loss in (*losses, statistics.mean(losses))]
        assert page[name] == [trained, str(runs[0].settings["train.lr"]), *shown]
        assert choice[name] == [trained, shown[-1]]

    demo = (ROOT / "scripts" / "demo.sh").read_text(encoding="utf-8")
    rates = re.findall(r"fnmodel\.name=\w+ .*train\.lr=(\S+)", demo)
    rivals = ("full fine-tuning", "LoRA", "ROSA, a resample every epoch", "ROSA, never resampled")
    for rate, name in zip(rates, rivals, strict=True):
        assert float(rate) == pytest.approx(found[name][0].settings["train.lr"], rel=0.01)


def means(records: str) -> dict[str, str]:
    """The mean loss of each row with three reported seeds."""
    losses = defaultdict(list)
    for run in load(ROOT / "studies" / records):
        if not run.trial:
            losses[label(run.way)].append(run.loss)
    return {name: f"{statistics.fmean(seeds):.3f}" for name, seeds in losses.items() if len(seeds) == 3}


def test_what_the_pages_say_of_rank_4_is_what_its_records_say() -> None:
    ways = ("LoRA r=4", "LoRA r=8", "LoRA r=16", "ROSA r=4, never", "ROSA r=4, every epoch", "full, layers only")
    page = (ROOT / "docs" / "which-method.md").read_text(encoding="utf-8")
    rows = cells(page.partition("| restaurants | ELI5 |")[2].partition("\n\n")[0])[1:]
    mean = [means(f"bundled/records-{name}") for name in ("rank4", "eli5")]
    assert [row[1:] for row in rows] == [[losses[way] for losses in mean] for way in ways]


def test_what_the_pages_say_of_memory() -> None:
    reported = cells(report(ROOT / "studies" / "pretrained" / "records-e2e").split("Reported seeds")[1])
    peak = {row[0]: int(row[-1].replace(",", "")) for row in reported if len(row) == 11 and row[1][:1].isdigit()}
    page = " ".join((ROOT / "docs" / "which-method.md").read_text(encoding="utf-8").split())
    found = re.search(r"peaks at about ([\d,]+) MiB with LoRA or ROSA, and at ([\d,]+) in full", page)
    assert found is not None
    low, high = (int(text.replace(",", "")) for text in found.groups())
    for way in ("LoRA r=8", "ROSA r=8, never", "ROSA r=8, every 50 steps"):
        assert round(peak[way], -2) == low
    assert round(peak["full, layers only"], -2) == high
    row = next(
        row for row in cells((ROOT / "docs/cost.md").read_text("utf-8")) if row[:2] == ["GPT-2 XL, ROSA", "whole on 1"]
    )
    rank = sum(map(float, row[3:6])) * 1024 / 80  # weights, gradients and Adam at a rank of 0.05 of 1,600
    assert f"a rank takes about {rank:.0f} MiB" in page


def short_run(result: Result) -> str:
    """A run of studies/bundled as its page names it."""
    level, every = result.settings["fnmodel.rosa.level"], result.settings["fnmodel.rosa.every"]
    resampled = {
        "never": "never resampled",
        "epoch": "a resample every epoch",
        "step": f"a resample every {every} steps",
    }
    names = {
        "none": "full fine-tuning",
        "none-layers": "full training of the same layers",
        "lora": "LoRA" if result.rank == 0.33 else f"LoRA, rank {result.rank}",
        "rosa": f"ROSA, {resampled[level]}",
    }
    return names[result.method]


def test_the_scores_of_e2e_are_those_of_the_records() -> None:
    folder = ROOT / "studies" / "pretrained"
    results = [result for result in read_results([folder / "records-e2e"])[0] if not result.trial]
    known = all_columns(results)
    scores = [known[name] for name in ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "SER")]
    rows, _ = rows_of(results)
    compute_statistics(rows, scores)
    page = cells((folder / "README.md").read_text(encoding="utf-8"))
    shown = {tuple(row[1:]) for row in page if len(row) == 7}
    scored = [row for row in rows if "BLEU" in row.statistics]
    assert len(scored) == 6  # ROSA of rank 1 has its losses only
    for row in scored:
        values = [(row.statistics[column.key], column.decimals) for column in scores]
        assert tuple(f"{one.mean:.{digits}f} ± {one.std:.{digits}f}" for one, digits in values) in shown


@pytest.mark.parametrize(
    ("records", "keys", "rank", "every", "task"),
    [
        ("capacity", 800, 1, 12, "capacity, rank 1, a resample every 12 steps"),
        ("pretrained", 160, 4, 50, "one matrix of SmolLM2, rank 4, every 50 steps"),
        ("pretrained", 40, 1, 200, "one matrix of SmolLM2, rank 1, every 200 steps"),
        ("pretrained", 0, 8, 50, "all layers of SmolLM2 on E2E, rank 8, every 50 steps"),
    ],
)
def test_the_rates_to_begin_with_are_those_that_were_chosen(
    records: str, keys: int, rank: int, every: int, task: str
) -> None:
    ways = {(keys, "lora", rank, 0, ""): 1, (keys, "rosa", rank, every, ""): 2, (keys, LAYERS_ONLY, 0, 0, ""): 3}
    (row,) = (row for row in cells((ROOT / "docs" / "which-method.md").read_text("utf-8")) if row[0] == task)
    runs = load(ROOT / "studies" / records / ("records" if keys else "records-e2e"))
    assert {run.way: run.lr for run in runs if run.way in ways and not run.trial} == {
        way: float(row[column]) for way, column in ways.items()
    }


def test_what_a_rate_beside_the_chosen_one_stored() -> None:
    searches = defaultdict(list)
    for study in ("capacity", "pretrained"):
        for run in load(ROOT / "studies" / study / "records"):
            others = run.way.every and {"sample_method=top", "optimizer_state=keep"} & set(run.way.others.split())
            if run.trial and not others:
                searches[study, run.way].append(run)
    failed, least = [], {"rosa": 1.0, "relora": 1.0}
    for (_, way), runs in searches.items():
        bits = [run.bits or 0.0 for run in sorted(runs, key=lambda run: run.lr)]
        chosen = bits.index(max(bits))
        if way.every:
            beside = min(bits[max(0, chosen - 1) : chosen + 2]) / bits[chosen]
            least[way.method] = min(least[way.method], beside)
        elif chosen + 1 < len(bits):
            failed.append(bits[chosen + 1] < bits[chosen] / 2)
    page = " ".join((ROOT / "docs" / "which-method.md").read_text(encoding="utf-8").split())
    shown = re.search(r"in (\d+) of the (\d+) searches", page), re.search(r"most (\d+) % less .* ReLoRA (\d+) %", page)
    assert [int(number) for found in shown if found for number in found.groups()] == [
        sum(failed), len(failed), *(round(100 * (1 - least[method])) for method in ("rosa", "relora")),
    ]  # fmt: skip


def test_the_cost_of_a_published_run_is_that_of_the_measurements() -> None:
    rows = figures("train-cpu-batch32.json")["rows"]
    half, single = (rows[f"rosa {precision}"]["samples_per_second"]["median"] for precision in ("bf16", "fp32"))
    resample = figures("resample-cpu.json")["median_seconds"]["project"]
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert f"{half:.1f} samples/s in bfloat16 and {single:.1f} in float32" in page
    assert f"{SAMPLES / half / 3600:.1f} and {SAMPLES / single / 3600:.1f} hours a run" in page
    assert f"{resample:.1f} s for gpt2's 48 layers" in page
    assert f"{SAMPLES:,} samples in all" in page and f"{-(-42_061 // 8) * 5:,} steps" in page


def test_published_parameters_are_those_that_the_library_counts() -> None:
    """tests/rosa/test_adapter_oracles.py compares the same counts with the library's."""
    rows = {row[0]: row[1:] for row in cells((ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"))}
    for ratio in PUBLISHED["gpt2"]:
        assert rows[str(ratio)] == [str(value) for counts in PUBLISHED.values() for value in counts[ratio]]
