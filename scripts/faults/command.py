"""The command: prepare, cause every fault, write the table."""

from __future__ import annotations

import argparse
import importlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from scripts.faults.ledger import FULL, QUICK, Laboratory, say
from utils.errors import UserError

IMPORTS = (
    "transformers", "torch.utils.tensorboard", "utils.training.loop", "utils.evaluation",
    "utils.metrics.scoring.score_runs",
    "utils.tables", "utils.plots", "utils.data.eli5", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
)  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.faults",
        description="Cause every fault that a run can meet, many times, and count runs lost and results changed.",
    )
    parser.add_argument("--quick", action="store_true", help="few of each, in some minutes; writes nothing to docs")
    parser.add_argument("--kills", type=int, help=f"kills of forked attempts (default: {FULL['kills']})")
    parser.add_argument("--typed", type=int, help=f"kills of the commands as typed (default: {FULL['typed']})")
    parser.add_argument("--times", type=int, help=f"of each other fault (default: {FULL['times']})")
    parser.add_argument("--inputs", type=int, help=f"bad inputs (default: {FULL['inputs']})")
    parser.add_argument("--jobs", type=int, help=f"kills in jobs of two processes (default: {FULL['jobs']})")
    parser.add_argument("--settings", type=int, help=f"other settings to kill under (default: {FULL['settings']})")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")
    parser.add_argument("--e2e", type=Path, help="folder with E2E's CSV files (default: the bundled texts)")
    parser.add_argument("--eli5", type=Path, help="folder with ELI5's JSON lines (default: the bundled texts)")
    parser.add_argument("--out", type=Path, help="folder of faults.md and faults.json (default: docs; --quick: none)")
    parser.add_argument(
        "--keep", type=Path, help="do the work in this new folder and leave it (default: a temporary one)"
    )
    arguments = parser.parse_args()
    for name, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> int:
    """Cause, count, write; 1 if anything was lost, changed or badly told."""
    arguments = parse_arguments()
    start = time.monotonic()
    if arguments.keep:
        if arguments.keep.exists():
            raise UserError(f"--keep {arguments.keep} exists already")
        arguments.keep.mkdir(parents=True)
    folder = (arguments.keep or Path(tempfile.mkdtemp(prefix="faults-"))).resolve()
    try:
        return _run(arguments, folder, start)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _run(arguments: argparse.Namespace, folder: Path, start: float) -> int:
    import torch

    for name in IMPORTS:
        importlib.import_module(name)
    torch.set_num_threads(1)  # bit for bit the same from run to run, and no threads to lose in a fork
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise UserError(f"this process has {threads} threads after its imports: it cannot be forked safely")
    from scripts.faults import damage, faults, jobs, kills, report, settings
    from scripts.faults.inputs import run as inputs
    from scripts.faults.material import write_data

    write_data(folder / "data", arguments.e2e, arguments.eli5, quick=arguments.quick)
    lab = Laboratory(folder, folder / "data")
    phases: Counter[str] = Counter()
    if arguments.kills:
        most = kills.FEW if arguments.quick else kills.MOST
        phases = kills.chains(lab, arguments.kills, random.Random(f"{arguments.seed} kills"), most)
    if arguments.settings:
        settings.chains(lab, arguments.settings, random.Random(f"{arguments.seed} settings"))
    if arguments.typed:
        kills.command_lines(lab, arguments.typed, random.Random(f"{arguments.seed} typed"))
    if arguments.jobs:
        jobs.killed(lab, arguments.jobs, random.Random(f"{arguments.seed} jobs"))
    for cause in (
        faults.signals, damage.checkpoints, damage.full_disks, faults.failing_writes, faults.not_finite,
        faults.out_of_memory, faults.unwritable, faults.locked,
    ):  # fmt: skip
        if arguments.times:
            cause(lab, arguments.times, random.Random(f"{arguments.seed} {cause.__name__}"))
            say(f"{cause.__name__}: done")
    verdicts = inputs.run_all(lab, arguments.inputs, arguments.seed, quick=arguments.quick) if arguments.inputs else {}
    found = report.gather(arguments, lab, phases, verdicts, time.monotonic() - start)
    print(report.markdown(found))
    out = arguments.out or (None if arguments.quick else Path(__file__).parent.parent.parent / "docs")
    if out is not None:
        report.write(out, found)
        print(f"written: {out / 'faults.md'}, {out / 'faults.json'}", file=sys.stderr)
    return int(any(row.bad for row in lab.rows.values()))
