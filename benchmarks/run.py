#!/usr/bin/env python
"""Measure speed on this machine: ``python benchmarks/run.py --data E2E_DIR --tokenizer GPT2_DIR``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.errors import run_cli
from utils.io.files import write_json

PARTS = ("train", "resample", "generate", "score", "startup", "memory", "growth")


def _command(arguments: argparse.Namespace, parts: list[str]) -> str:
    """The command line with names in place of this machine's folders."""
    words = ["python benchmarks/run.py", f"--only {','.join(parts)}"]
    words += ["--quick"] if arguments.quick else []
    words += [f"--batch {arguments.batch}"] if parts == ["train"] else []
    words += [f"--command '{arguments.command}'"] if arguments.command and parts == ["train"] else []
    words += ["--data E2E_DIR"] if arguments.data else []
    words += ["--scores SCORES_DIR"] if arguments.scores else []
    words += [] if arguments.tokenizer == "tiny" else [f"--tokenizer {Path(arguments.tokenizer).name}"]
    return " ".join(words)


def _false_checks(figures: dict[str, Any], prefix: str = "") -> list[str]:
    """The names, however deep, that end in ``_equal`` and are false."""
    found = []
    for key, value in figures.items():
        if isinstance(value, dict):
            found += _false_checks(value, f"{prefix}{key}.")
        elif str(key).endswith("_equal") and value is False:
            found.append(f"{prefix}{key}")
    return found


def part_modules() -> dict[str, Any]:
    """The module of each part: ``measure(settings)`` gives its figures, ``table(figures)`` their Markdown rows."""
    from benchmarks import generating, growth, memory, resampling, scoring, startup, training

    modules = (training, resampling, generating, scoring, startup, memory, growth)
    return dict(zip(PARTS, modules, strict=True))


def main() -> int:
    """Run the parts, write their figures as JSON and all tables as Markdown; 1 if two ways gave different results."""
    parser = argparse.ArgumentParser(description="Measure this project against the plain way, on this machine.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a look, not a measurement")
    parser.add_argument("--data", help="folder with E2E's CSV files (default: the bundled sample)")
    parser.add_argument("--scores", help="folder with a system's predictions to score (default: the data's own)")
    parser.add_argument("--tokenizer", default="tiny", help="folder or hub name (default: the bundled one)")
    parser.add_argument("--batch", type=int, default=32, help="samples of a training step (default: 32)")
    parser.add_argument("--command", help="a shell command to time in the table of training: see benchmarks/ways.py")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON files")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")

    import torch

    from benchmarks import report
    from benchmarks.common import Settings, cpu_flags
    from utils.processes.devices import resolve_device
    from utils.runs.provenance import git_commit, hardware, now, versions

    modules = part_modules()
    device = torch.device(resolve_device(arguments.device))
    settings = Settings(
        device, arguments.quick, arguments.data, arguments.tokenizer, arguments.scores,
        arguments.batch, arguments.command,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    unequal = []
    for part in parts:
        context = {
            "command": _command(arguments, [part]),
            "measured": now(), "git_commit": git_commit(), "versions": versions(),
            "hardware": {**hardware(device, 1, "fp32"), "cpu_flags": cpu_flags()}, "threads": torch.get_num_threads(),
        }  # fmt: skip
        start = time.perf_counter()
        figures = modules[part].measure(settings)
        context["seconds"] = round(time.perf_counter() - start, 1)
        variant = f"-batch{arguments.batch}" if part == "train" else ""
        path = arguments.out / f"{part}-{device.type}{variant}{'-quick' if arguments.quick else ''}.json"
        write_json(path, {**context, "figures": figures})
        table = report.markdown(modules[part].table(figures))
        print(f"\n{part}: {path} ({context['seconds']} s)\n\n{table}", flush=True)
        unequal += [f"{part}: {name} is false" for name in _false_checks(figures)]
    tables = {name: module.table for name, module in modules.items()}
    print(f"all tables: {report.write_page(arguments.out, tables)}")
    for line in unequal:
        print(f"error: {line}: see its JSON", file=sys.stderr)
    return int(bool(unequal))


if __name__ == "__main__":
    run_cli(main)
