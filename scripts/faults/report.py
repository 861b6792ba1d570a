"""The page of faults: a table for people, the raw record beside it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from scripts.faults.ledger import FULL, QUICK, Laboratory, as_json
from utils.io.files import write_json, write_text
from utils.runs.provenance import git_commit, hardware, now, versions


def gather(
    arguments: argparse.Namespace,
    lab: Laboratory,
    phases: Counter[str],
    verdicts: dict[str, Counter[str]],
    seconds: float,
) -> dict[str, Any]:
    """Everything that was counted, and on what."""
    numbers = (*FULL, "seed")
    return {
        "command": " ".join(["python -m scripts.faults", *_options(arguments)]),
        "settings": {name: getattr(arguments, name) for name in numbers},
        "data": {"e2e": "E2E" if arguments.e2e else "bundled", "eli5": "ELI5" if arguments.eli5 else "bundled"},
        "made": now(), "minutes": round(seconds / 60, 1), "git_commit": git_commit(), "versions": versions(),
        "hardware": hardware(torch.device("cpu"), 1, "fp32"),
        "faults": as_json(lab.rows), "struck": dict(sorted(phases.items())),
        "bad_inputs": {name: dict(counter) for name, counter in verdicts.items()},
    }  # fmt: skip


def _options(arguments: argparse.Namespace) -> list[str]:
    """What was asked for, with names in place of this machine's folders."""
    words = ["--quick"] if arguments.quick else []
    usual = QUICK if arguments.quick else FULL
    words += [f"--{name} {getattr(arguments, name)}" for name in usual if getattr(arguments, name) != usual[name]]
    words += ["--e2e E2E_DIR"] if arguments.e2e else []
    return words + (["--eli5 ELI5_DIR"] if arguments.eli5 else [])


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    rows, inputs = found["faults"], found["bad_inputs"]
    kills = [row for row in rows if row["fault"].startswith("kill -9")]
    lost, changed = (sum(row[key] for row in rows) for key in ("runs_lost", "results_changed"))
    given = sum(sum(counts.values()) for counts in inputs.values())
    lines = [
        "# Faults: what was caused, and what was lost",
        "",
        f"{sum(row['caused'] for row in kills)} kills at random moments, {sum(row['caused'] for row in rows) - given} "
        f"faults in all: {lost} runs lost, {changed} results changed. {given} bad inputs: "
        f"{_count(inputs, 'traceback')} tracebacks, {_count(inputs, 'half-written')} half-written results.",
        "",
        "| fault | caused | runs lost | results changed | badly told | what a user sees |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row['fault']} | {row['caused']} | {row['runs_lost']} | {row['results_changed']} | {row['other_failures']} "
        f"| {row['told']} |"
        for row in rows
    ]
    lines += [
        "",
        _HOW,
        "",
        "Where the kills of forked attempts struck:",
        "",
        "| command: within | kills |",
        "| --- | ---: |",
    ]
    lines += [f"| {name} | {count} |" for name, count in found["struck"].items()]
    header = "| kind | given | accepted, with the right result | refused, with one message |"
    lines += ["", "Bad inputs by kind:", "", header, "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {sum(counts.values())} | {counts.get('accepted', 0)} | {counts.get('refused', 0)} |"
        for name, counts in inputs.items()
    ]
    machine = found["hardware"]
    name = machine.get("name") or machine.get("device")
    lines += [
        "",
        f"Made by `{found['command']}` (`make faults`) in {found['minutes']:.0f} minutes on {name}, Python "
        f"{found['versions']['python']}, PyTorch {found['versions']['torch']}, {found['made'][:10]}; "
        "raw record: [faults.json](faults.json).",
    ]
    return "\n".join(lines) + "\n"


def _count(inputs: dict[str, dict[str, int]], verdict: str) -> int:
    return sum(counts.get(verdict, 0) for counts in inputs.values())


_HOW = """\
Each run trains the bundled model for three epochs with dropout and a checkpoint every other step, for ROSA, LoRA
and full fine-tuning on E2E and ELI5, and is then evaluated and scored. A chain of kills starts a command, sends it
SIGKILL at a random moment and gives the same command again until it ends by itself. The moments are spread evenly
over the command's life, with a share aimed into what writes, and a share just before the n-th operation on files, n
random. In the end these must equal an undisturbed run's, bit for bit: all weights of the best and last checkpoint,
the optimizer's state and generators, every point of metrics.jsonl and TensorBoard (each once; measured times left
out), predictions, losses, scores, and the names of all files. *Caused* counts only what really struck a command at
work. *Badly told* counts tracebacks, half-written files and messages that name neither file nor key. Every other
fault is followed by the same command without it, and the same comparison."""


def write(folder: Path, found: dict[str, Any]) -> None:
    """faults.md and faults.json in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "faults.json", found)
    write_text(folder / "faults.md", markdown(found))
