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
    "LoRA of rank 16, which failed on one seed": "LoRA r=16",
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


@pytest.mark.parametrize(("keys", "rank", "every"), [("40", 1, 200), ("40", 4, 100), ("160", 4, 200)])
def test_the_bits_on_the_face_of_the_project(keys: str, rank: int, every: int) -> None:
    reported = cells(report(ROOT / "studies" / "pretrained" / "records").split("Reported seeds")[1])
    mean = {row[1]: row[5] for row in reported if row[0] == keys}
    rows = {row[0]: row[1:] for row in cells((ROOT / "README.md").read_text(encoding="utf-8")) if len(row) == 8}
    (shown,) = (row for name, row in rows.items() if name.startswith(f"rank {rank},") and f"every {every} " in name)
    rosa = (f"ROSA r={rank}, never", f"ROSA r={rank}, every {every} steps")
    relora = f"ReLoRA r={rank}, every {every} steps, rewarm_steps=3"
    lora = (f"LoRA r={factor * rank}" for factor in (1, 2, 4))
    names = (next(lora), *rosa, relora, *lora, "full, layers only")
    assert shown == [mean.get(name, "–") for name in names]


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
    mean = means("bundled/records-rank4")
    lora, rosa = [mean[f"LoRA r={rank}"] for rank in (4, 8, 16)], mean["ROSA r=4, every epoch"]
    ways = ("LoRA of rank 4 comes to", "of rank 8 to", "of rank 16 to")
    row = ", ".join(f"{way} {loss}" for way, loss in zip(ways, lora, strict=True))
    row += f", ROSA of rank 4 to {mean['ROSA r=4, never']} without a resample and {rosa} with seven, "
    row += f"full training of the layers to {mean['full, layers only']}. The same on ELI5: "
    eli5 = means("bundled/records-eli5")
    row += "LoRA {}, {} and {}, ".format(*(eli5[f"LoRA r={rank}"] for rank in (4, 8, 16)))
    row += f"ROSA {eli5['ROSA r=4, never']} without a resample and {eli5['ROSA r=4, every epoch']} with seven, "
    row += f"full training {eli5['full, layers only']}."
    assert row in " ".join((ROOT / "docs" / "which-method.md").read_text("utf-8").split())
    best = f"ROSA ends at {rosa}, LoRA at {lora[0]}; LoRA of rank 8, with twice the parameters, at {lora[1]}."
    assert best in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_memory_on_the_face_of_the_project() -> None:
    reported = cells(report(ROOT / "studies" / "pretrained" / "records-e2e").split("Reported seeds")[1])
    peak = {row[0]: row[-1] for row in reported if len(row) == 11}
    words = f"peaks at {peak['full, layers only']} MiB in full, at {peak['LoRA r=8']} with LoRA and at "
    words += f"{peak['ROSA r=8, every 50 steps']} with ROSA; "
    total = {
        row[0]: float(row[-1]) for row in cells((ROOT / "docs/cost.md").read_text("utf-8")) if row[1] == "whole on 1"
    }
    full, rosa = (total[f"GPT-2 XL, {method}"] for method in ("full", "ROSA"))
    words += f"[for GPT-2 XL](docs/cost.md) the estimate is {full:.0f} GiB in full and {rosa:.0f} with either."
    assert words in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


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
    assert f"in {sum(failed)} of the {len(failed)} searches on books it stored less than half" in page
    words = f"ROSA stored at most {1 - least['rosa']:.0%} less at a rate 1.5 times lower or higher, ReLoRA "
    assert f"{words}{1 - least['relora']:.0%}".replace("%", " %") in page


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
