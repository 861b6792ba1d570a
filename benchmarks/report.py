"""The Markdown pages of the measurements: every table under ``benchmarks/results``, and the ratios the README shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.io.files import write_text

Record = dict[str, Any]
NONE = "–"


def read_results(folder: Path) -> dict[tuple[str, str], Record]:
    """The full measurements in ``folder`` by (part, device); quick looks are left out."""
    records = {}
    for path in sorted(folder.glob("*-*.json")):
        part, _, device = path.stem.partition("-")
        if not device.endswith("-quick"):
            records[part, device] = json.loads(path.read_text(encoding="utf-8"))
    return records


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table of a header and rows; all columns but the first are aligned to the right."""
    header, *body = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *body))


def ratios(results: dict[tuple[str, str], Record]) -> list[list[str]]:
    """What each part gained over the plain way measured beside it, a row a part and device, with the hardware."""
    rows = [["what, against the plain way of the same run", "hardware", "PEFT", "LoRA", "ROSA"]]
    for (part, _), record in results.items():
        figures, hardware = record["figures"], describe(record)
        if part == "train":
            rows += _training(figures, hardware)
        elif part == "resample":
            what = f"resample of {figures['layers']} layers, equal subspaces"
            rows.append([what, hardware, NONE, NONE, f"{figures['speedup']:.2f}"])
        elif part == "generate":
            rows += _generation(figures["models"]["gpt2"], hardware)
        elif part == "score":
            gain = f"{figures['times_as_fast_as_quoted']['warm']:.2f}"
            what = f"all five scores of {figures['items']} texts, against {figures['official_seconds']:.0f} s (quoted)"
            rows.append([what, hardware, NONE, gain, gain])
        elif part == "memory":
            rows += _memory(figures["rows"], hardware)
    return rows


def _training(figures: Record, hardware: str) -> list[list[str]]:
    """By precision: samples per second against the plain way, and against PEFT as an expert drives it."""
    lines = []
    for precision in ("fp32", "bf16"):
        for key, rival in (("of_plain", ""), ("of_expert", ", against PEFT by an expert")):
            found = [figures["rows"].get(f"{way} {precision}", {}).get(key) for way in ("expert", "lora", "rosa")]
            if any(found):
                what = f"E2E training, samples/s, batch {figures['batch_size']}, {precision}{rival}"
                lines.append(
                    [what, hardware, *(NONE if value is None else f"{value['median']:.2f}" for value in found)]
                )
    return lines


def _generation(row: Record, hardware: str) -> list[list[str]]:
    """Against transformers' ``generate`` in the same batches, and against one prompt at a time."""
    rivals = {"batched": "`generate` in batches", "one by one": "`generate` one by one"}
    lines = []
    for name, value in row["times_as_fast"].items():
        way, _, precision = name.rpartition(" ")
        what = f"generating, {row['prompts']} MRs, {row['beams']} beams, {precision}, against {rivals[way]}"
        lines.append([what, hardware, NONE, *[f"{value['median']:.2f}"] * 2])
    return lines


def _memory(rows: list[Record], hardware: str) -> list[list[str]]:
    """Peak memory and step time of each batch, with and without gradient checkpointing."""
    found = {(row["batch"], row["checkpointing"], row["method"]): row for row in rows if "error" not in row}
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        plain = found.get((batch, False, "plain"))
        for checkpointing in (False, True):
            label = f"{batch}{', gradient checkpointing' if checkpointing else ''}"
            own = [found.get((batch, checkpointing, method)) for method in ("peft", "lora", "rosa")]
            if plain is None or not any(own):
                continue
            memory = [NONE if row is None else f"{row['ratio']:.2f}" for row in own]
            speed = [
                NONE if row is None else f"{plain['seconds_per_step'] / row['seconds_per_step']:.2f}" for row in own
            ]
            lines += [[f"peak memory, {label}", hardware, *memory], [f"steps/s, {label}", hardware, *speed]]
    return lines


def describe(record: Record) -> str:
    """The hardware in words."""
    hardware = record["hardware"]
    return f"{hardware['cores']} cores, {hardware['name']}" if hardware["device"] == "cpu" else str(hardware["name"])


def write_page(folder: Path, tables: dict[str, Any]) -> Path:
    """Write ``README.md`` in ``folder`` from the measurements that lie there.

    Args:
        tables: by part, what makes a table (header and rows) of its figures.
    """
    results = read_results(folder)
    parts = ["# Measurements\n\nMade by `python benchmarks/run.py`; the raw figures are the JSON files beside this.\n"]
    parts.append("Each ratio is of one run. Compare no times between tables: the machine was shared.\n")
    parts.append(f"## Ratios\n\n{markdown(ratios(results))}")
    for (part, device), record in results.items():
        versions = record["versions"]
        machine = ", ".join([describe(record), *record["hardware"].get("cpu_flags", ())])
        parts.append(
            f"## {part}, {device}\n\n{machine}; {record['threads']} threads, PyTorch {versions['torch']}, "
            f"transformers {versions['transformers']}; {record['measured'][:10]}; `{record['command']}`\n\n"
            f"{markdown(tables[part](record['figures']))}"
        )
    path = folder / "README.md"
    write_text(path, "\n".join(parts))
    return path
