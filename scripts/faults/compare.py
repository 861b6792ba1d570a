"""What a run came to, without what may differ (times, paths): two runs are the same if these facts are."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from utils.io.files import sha256
from utils.runs import Run

TIMED = ("samples_per_second", "tokens_per_second", "peak_memory_mib", "seconds")
UNEQUAL = ("board", "seconds", "metrics_position")  # of a checkpoint's progress: lengths of texts with times in them
BOARD = "tensorboard"
FILES = "files"
AGAIN = r"(?<=\d{8})-\d+"  # tells a step's second checkpoint from its first


def facts(run: Run) -> dict[str, str]:
    """Name → digest of everything that a user gets: weights, optimizer, points, predictions, scores, TensorBoard."""
    found: dict[str, str] = {}
    for name, folder in (("best", run.best), ("last", run.last)):
        for path in sorted(folder.glob("*.safetensors")):
            found |= {f"{name} weights {path.name} {key}": _digest(value) for key, value in load_file(path).items()}
    for name, folder in (("best", run.best), ("last", run.last)):
        if folder.is_dir():  # train.keep_last=false leaves the best alone
            found[f"{name} state"] = _digest(torch.load(folder / "state.pt", weights_only=True))
            progress = json.loads((folder / "state.json").read_text(encoding="utf-8"))["progress"]
            found[f"{name} progress"] = _digest({key: progress[key] for key in progress if key not in UNEQUAL})
    for name, folder in (("best", run.best), ("last", run.last)):
        found[f"{name} name"] = re.sub(AGAIN, "", folder.resolve().name)
    points = [{key: value for key, value in point.items() if key not in TIMED} for point in run.metrics()]
    found["metrics.jsonl"] = _digest(points)
    record = run.record()
    kept = ("status", "error", "dataset", "method", "rank", "parameters", "data", "progress", "best", "last")
    found["run.json"] = _digest([*(record[key] for key in kept), record["timings"]["resamples"]])
    found[BOARD] = _digest(_events(run.path))
    for path in sorted(run.path.glob("test_*")):
        found[path.name] = sha256(path)
    if run.eval_file.exists():
        part = run.evaluation() or {}
        found["eval.json"] = _digest({key: part[key] for key in part if key != "checkpoint_sha256"})
    if run.scores_file.exists():
        found["scores.json"] = _digest(run.scores())
    # a lock's file is no result: one that a kill leaves behind blocks nobody
    paths = [p for p in run.path.rglob("*") if "tfevents" not in p.name and p.suffix != ".lock"]
    names = [p.relative_to(run.path) for p in paths]
    # a stop saves a checkpoint of its own, which may be the one kept before the last: how many there are is compared
    found[FILES] = " ".join(sorted(re.sub(rf"step-\d+({AGAIN})?", "step", str(name)) for name in names))
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The names of the facts that differ, or that one of the two has not."""
    names = sorted({*expected, *found})
    different = [name for name in names if expected.get(name) != found.get(name)]
    before, after = (Counter(part.get(FILES, "").split()) for part in (expected, found))
    extra = [*(after - before), *(before - after)]
    return [f"{name}: {' '.join(sorted(extra))}" if name == FILES else name for name in different]


def half_written(run: Run) -> list[str]:
    """Files for other programs to read that are not whole, at whatever moment the run was stopped."""
    bad = []
    for path in (run.record_file, run.eval_file, run.scores_file, *run.checkpoints.glob("step-*/state.json")):
        if path.exists():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                bad.append(path.name)
    return bad


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(f"{key}: ".encode())
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} ".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())


def _events(folder: Path) -> list[Any]:
    """Every value in TensorBoard's files, repeated ones repeated: (tag, step, number); of texts no content."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = []
    for path in folder.glob("events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                timed = value.tag.rpartition("/")[2] in TIMED
                number = value.simple_value if value.HasField("simple_value") and not timed else None
                found.append((value.tag, event.step, number))
    return sorted(found, key=repr)
