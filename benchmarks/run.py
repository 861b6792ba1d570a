#!/usr/bin/env python
"""Measure speed on this machine: ``python benchmarks/run.py --data E2E_DIR --tokenizer GPT2_DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.errors import run_cli
from utils.files import write_json

PARTS = ("train", "resample", "generate", "score", "startup", "memory", "growth")


def _command(arguments: argparse.Namespace) -> str:
    """The command line with names in place of this machine's folders."""
    words = ["python benchmarks/run.py", f"--only {arguments.only}"]
    words += ["--quick"] if arguments.quick else []
    words += ["--data E2E_DIR"] if arguments.data else []
    words += [] if arguments.tokenizer == "tiny" else [f"--tokenizer {Path(arguments.tokenizer).name}"]
    return " ".join(words)


def main() -> int:
    """Run the parts and write their figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure this project against the plain way, on this machine.")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a look, not a measurement")
    parser.add_argument("--data", help="folder with E2E's CSV files (default: the bundled sample)")
    parser.add_argument("--tokenizer", default="tiny", help="folder or hub name (default: the bundled one)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON files")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")

    import torch

    from benchmarks import generating, growth, memory, resampling, scoring, startup, training
    from benchmarks.common import Settings
    from utils.devices import resolve_device
    from utils.provenance import git_commit, hardware, now, versions

    measures = {
        "train": training.measure, "resample": resampling.measure, "generate": generating.measure,
        "score": scoring.measure, "startup": startup.measure, "memory": memory.measure, "growth": growth.measure,
    }  # fmt: skip
    device = torch.device(resolve_device(arguments.device))
    settings = Settings(device, arguments.quick, arguments.data, arguments.tokenizer)
    context = {
        "command": _command(arguments),
        "measured": now(), "git_commit": git_commit(), "versions": versions(),
        "hardware": hardware(device, 1, "fp32"), "threads": torch.get_num_threads(),
    }  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for part in parts:
        figures = measures[part](settings)
        path = arguments.out / f"{part}-{device.type}{'-quick' if arguments.quick else ''}.json"
        write_json(path, {**context, "figures": figures})
        print(f"{part}: {path}")
        for name, row in figures.get("methods", {"": figures}).items():
            if "speedup" not in row:
                continue
            print(
                f"  {name:<6} {row['speedup']}x the plain way", "" if row.get("losses_equal", True) else "LOSSES DIFFER"
            )
            failed |= not row.get("losses_equal", True)
    return int(failed)


if __name__ == "__main__":
    run_cli(main)
