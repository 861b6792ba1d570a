"""What a run came to, without what may differ (times, paths): two runs are the same if these facts are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

TIMED = ("samples_per_second", "tokens_per_second", "peak_memory_mib", "seconds")
UNEQUAL = ("board", "seconds", "metrics_position")  # of a checkpoint's progress: lengths of texts with times in them
RECORD = ("status", "error", "dataset", "method", "rank", "parameters", "data", "progress", "best", "last")
BOARD, FILES = "TensorBoard", "files"
AGAIN = r"(?<=\d{8})-\d+"  # tells a step's second checkpoint from its first


def run_in(out: Path) -> Path:
    """The one run below ``out``, which may have been killed before it had a record."""
    (run,) = {path.parent for name in (".train.lock", "run.json") for path in out.glob(f"*/*/{name}")}
    return run


def facts(run: Path) -> dict[str, str]:
    """Name → everything that a user gets, as text: weights, optimizer, points, predictions, scores, TensorBoard."""
    found: dict[str, Any] = {}
    for name in ("best", "last"):
        folder = run / "checkpoints" / name
        found[f"{name} name"] = re.sub(AGAIN, "", folder.resolve().name)
        found |= {f"{name} {path.name}": path.read_bytes() for path in folder.glob("*.safetensors")}
        if folder.is_dir():  # train.keep_last=false leaves the best alone
            found[f"{name} state"] = torch.load(folder / "state.pt", weights_only=True)
            progress = json.loads((folder / "state.json").read_text())["progress"]
            found[f"{name} progress"] = {key: progress[key] for key in progress if key not in UNEQUAL}
    points = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found["metrics.jsonl"] = [{key: point[key] for key in point if key not in TIMED} for point in points]
    record = json.loads((run / "run.json").read_text())
    found["run.json"] = [*(record[key] for key in RECORD), record["timings"]["resamples"]]
    found[BOARD] = _events(run)
    found |= {path.name: path.read_bytes() for path in run.glob("test_*")}
    for path in (run / "eval.json", run / "scores.json"):
        found[path.name] = {**json.loads(path.read_text())["test"], "checkpoint_sha256": ""} if path.exists() else None
    # the file of a lock is no result: one that a kill leaves behind blocks nobody
    names = [str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name and p.suffix != ".lock"]
    # a stop saves a checkpoint of its own, which may be the one kept before the last: how many there are is compared
    files = " ".join(sorted(re.sub(rf"step-\d+({AGAIN})?", "step", name) for name in names))
    return {FILES: files} | {name: json.dumps(value, default=_bits, sort_keys=True) for name, value in found.items()}


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().view(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
        return [str(value.dtype), value.shape, _bits(content)]
    return hashlib.sha256(value).hexdigest()


def differences(expected: dict[str, str], found: dict[str, str], but: tuple[str, ...] = ()) -> list[str]:
    """The names of the facts that differ or that one of the two has not, without those in ``but``."""
    different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    extra = " ".join(sorted({*expected[FILES].split()} ^ {*found[FILES].split()}))
    return [f"{name}: {extra}" if name == FILES else name for name in different if name not in but]


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
