"""Versions, commit, hardware and peak memory, for run.json."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config.train import TrainConfig
from utils.text import as_typed

COSTS = (  # keys of train that change the memory and the time of a run, and not its result
    "micro_batch_size", "micro_batch_tokens", "gradient_checkpointing", "cache_frozen", "compile", "sharding",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "hydra-core", "numpy")


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that influence a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of this code, with ``+changes`` if files differ from it; None outside a git checkout."""
    here = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def hardware(device: Any, processes: int, precision: str) -> dict[str, Any]:
    """The device a run used."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": device.type,
        "name": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": processes,
        "precision": precision,
    }


def costs(train: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``COSTS`` among the settings ``train`` that are not at their defaults."""
    given = {key: train.get(key) for key in COSTS}
    if given["micro_batch_size"] == train.get("batch_size"):
        del given["micro_batch_size"]
    return {key: value for key, value in given.items() if value is not None and value != getattr(TrainConfig, key)}


def hardware_of(record: dict[str, Any], train: Mapping[str, Any]) -> str:
    """The hardware of a run and its ``costs`` in words: of each start that had others, as its times are their sum.

    Args:
        train: the settings of its last start, for committed records without the costs of each.
    """
    starts = record.get("starts")
    every = [start.get("hardware") for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    names = [_in_words(parts, train) for parts in every if isinstance(parts, dict)]
    last = record.get("hardware")
    return " and ".join(dict.fromkeys(names)) or _in_words(last if isinstance(last, dict) else {}, train)


def _in_words(parts: dict[str, Any], train: Mapping[str, Any]) -> str:
    name = str(parts.get("name") or parts.get("device") or "unknown")
    if parts.get("device") == "cpu" and parts.get("cores"):
        name += f" of {parts['cores']} cores"
    processes, precision = parts.get("processes") or 1, parts.get("precision") or ""
    name += (f" × {processes}" if processes != 1 else "") + (f", {precision}" if precision else "")
    recorded = parts.get("costs")
    found = recorded if isinstance(recorded, dict) else costs(train)
    return ", ".join([name, *(f"{key}={as_typed(value)}" for key, value in found.items())])


def peak_memory_mib(device: Any) -> float:
    """Peak memory in MiB: allocated on the GPU, or the process's resident set on a CPU."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # Linux, whose ru_maxrss may be that of the parent process
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def reset_peak_memory() -> None:
    """Begin a new peak, so that a run's is not that of an earlier run of the process. Linux and CUDA only.

    The earlier run's model is in a cycle with accelerate's autocast, and would stay until Python collects those.
    """
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_mib(device: Any) -> float:
    """The memory in use now, of the kind whose peak ``peak_memory_mib`` gives."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:  # no Linux: the peak so far
        return peak_memory_mib(device)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
