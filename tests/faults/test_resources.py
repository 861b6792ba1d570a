"""Faults of the machine: full disks, files that cannot be written, numbers that are not finite, missing memory."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.faults.commands import REFUSED, Ended, fail, limit_memory
from tests.faults.lab import CASES, MAY_LACK, STAGES, Case, Lab, run_in

pytestmark = pytest.mark.faults
FULL = "stops, names the file and the reason; earlier results stay whole"
LONG = 300  # tokens at least of the one long training text


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB in memory; skips where mounting is not allowed."""
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(tmp_path)], stderr=subprocess.DEVNULL):
        pytest.skip("no file system can be mounted here: that needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=False)


def test_a_disk_that_fills(lab: Lab, case: Case, number: int, disk: Path, chance: random.Random) -> None:
    row = lab.row("a disk that fills (a small tmpfs)", FULL, 0)
    stage, out = ("train", "train", "eval", "score")[number % 4], disk / "x" / "runs"
    shutil.copytree(lab.before(stage, case), out, symlinks=True)
    files = [path for path in lab.undisturbed(case, "train").out.rglob("*") if path.is_file() and not path.is_symlink()]
    room = {"train": sum(path.stat().st_size for path in files), "eval": 8 << 10, "score": 4 << 10}[stage]
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * max(shutil.disk_usage(disk).free - chance.randrange(room), 0))
    ended = lab.run(stage, case, out)
    ballast.unlink()
    row["caused"] += bool(ended.code or may_lack(ended))  # else it had room enough
    check_full(lab, case, stage, out, ended)


@pytest.mark.parametrize("stage", STAGES)
def test_writes_that_fail(lab: Lab, case: Case, stage: str, chance: random.Random) -> None:
    lab.row("writes that fail (injected ENOSPC)", FULL)
    at, out = lab.undisturbed(case, stage).ended.random_operation(chance), lab.before(stage, case)
    ended = lab.run(stage, case, out, at=fail(errno.ENOSPC, at))
    check_full(lab, case, stage, out, ended)


def may_lack(ended: Ended) -> tuple[str, ...]:
    """Facts that may differ after a command that warned that TensorBoard's files or its log could not be written."""
    return MAY_LACK if "TensorBoard" in ended.output or "train.log" in ended.output else ()


def check_full(lab: Lab, case: Case, stage: str, out: Path, ended: Ended) -> None:
    """A command that met a full disk said so; with room, it and the ones after it come to the same result."""
    assert ended.code in (0, 1, REFUSED), f"{stage} ends with {ended.code}: {ended.output[-1500:]}"
    if ended.code:
        assert "No space left" in ended.output or "disk is full" in ended.output, ended.output[-1500:]
        assert str(out) in ended.output, f"{stage} names no file: {ended.output[-1500:]}"
    for name in STAGES[STAGES.index(stage) :]:
        lab.finish(name, case, out, but=may_lack(ended))


UNWRITABLE = {  # what a name's file is, the exit code, what a user sees
    "train.log": ("train.log", 0, "a warning; training goes on"),
    "events.out": ("TensorBoard", 0, "a warning; training goes on"),
    "metrics.jsonl": ("metrics.jsonl", REFUSED, "stops, names the file; the same command goes on when it is fixed"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_file_that_cannot_be_written(lab: Lab, name: str, case: Case) -> None:
    (word, code, seen), out = UNWRITABLE[name], lab.out()
    lab.row(f"unwritable {word}", seen)
    lab.run("train", case, out, at=fail(errno.EACCES, name=name)).check(word, code=code)
    lab.finish("train", case, out, but=MAY_LACK if code == 0 else ())


def base_model(folder: Path, kind: str) -> Path:
    """The bundled model, but at a position that none but the long text reaches a sum overflows (``loss``), or layer
    norms see a constant vector, where with a tiny epsilon their derivative overflows and they do not (``gradient``)."""
    shutil.copytree(ROOT / "assets" / "tiny-gpt2", folder)
    weights = load_file(folder / "model.safetensors")
    (positions,) = (value for name, value in weights.items() if name.endswith("wpe.weight"))
    huge = torch.tensor([3e38, -3e38]) if kind == "loss" else torch.tensor([1e10, 1e10])
    positions[LONG - 1] = huge.repeat(positions.shape[1] // 2)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "layer_norm_epsilon": 1e-38}))
    return folder


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_numbers_that_are_not_finite(lab: Lab, kind: str, number: int) -> None:
    case, epochs = CASES[(number + (kind == "gradient")) % 3], 3
    out, whole, data = lab.out(), lab.out(), lab.out() / "data"
    shutil.copytree(lab.data / "e2e_nlg", data)
    with (data / "trainset.csv").open("a") as file:
        file.write(f'"name[A]","{"A pub. " * LONG}"\n')
    more = [f"model.name={base_model(out.parent / 'base', kind)}", f"dataset.path={data}"]
    more += ["model.dropout=0", "logging.samples=0"]
    lab.row("a loss or gradient that is not finite", "stops, names the step and what to try; checkpoints stay")
    lab.run("train", case, out, *more).check("at step", "lower train.lr", "train.skip_nonfinite=true")
    lab.row("the same with train.skip_nonfinite=true", "goes on without the update, and counts it", epochs)
    more.append("train.skip_nonfinite=true")
    lab.run("train", case, whole, *more).check(code=0)
    assert json.loads((run_in(whole) / "run.json").read_text())["skipped_updates"] == epochs
    lab.finish("train", case, out, *more, like=whole)  # from the last checkpoint before


def test_out_of_memory(lab: Lab, case: Case, chance: random.Random) -> None:
    lab.row("out of memory", "stops, names the batch size, what to set, and whether the result stays the same")
    out, _ = lab.stopped(case, chance)
    ended = lab.run("train", case, out, at=limit_memory)
    ended.check("out of memory at step", "train.batch_size=16", "train.micro_batch_size=8")
    lab.finish("train", case, out)
