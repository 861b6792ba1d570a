"""One checkpoint folder: file names, ``Progress``, verification, loading of weights and state.

``checkpoints.py`` writes the folders of a run and chooses among them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model

import rosa
from rosa.files import ADAPTER_FILE
from utils.errors import UserError, short_reason
from utils.io.files import read_object, sha256
from utils.models.loading import load_adapter_of_base
from utils.runs.run import IDENTITY, SUMMARY, Identity, Run

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.pt"


class OtherRun(UserError):
    """A checkpoint or a record in a run's folder is that of another run."""


@dataclass
class Progress:
    """The progress of a training. ``step`` counts optimizer steps; ``batch`` those within the current epoch."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    resamples: int = 0
    resampled_at: int = 0  # the step of the last resample
    skipped: int = 0  # updates left out because they were not finite (train.skip_nonfinite)
    metrics_position: int = 0  # bytes of metrics.jsonl
    board: dict[str, int] = field(default_factory=dict)  # bytes of each TensorBoard file
    seconds: dict[str, float] = field(default_factory=dict)  # spent so far, by kind
    samples: int = 0
    tokens: int = 0
    peak_memory_mib: float = 0.0  # of all processes that have trained it
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None

    @classmethod
    def read(cls, values: Any) -> Progress:
        """The progress from its ``asdict``. Raises ValueError for any other value."""
        plain = asdict(cls())
        if not isinstance(values, dict) or not values.keys() <= plain.keys():
            raise ValueError("its progress is not one of this version")
        for name, value in values.items():
            kind = dict if plain[name] is None and value is not None else type(plain[name])
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise ValueError(f"its progress has {name}={value!r}")
        return cls(**values)

    def spend(self, kind: str, start: float) -> float:
        """Add the seconds since ``start`` (``time.perf_counter``) to those of ``kind``, and return them."""
        seconds = time.perf_counter() - start
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        return seconds


def checksum(summary: dict[str, Any]) -> str:
    """The checksum of a summary's content, which does not include the checksum."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def verify(folder: Path) -> dict[str, Any]:
    """The summary of a checkpoint, once all of its files are found and match their hashes.

    Raises:
        UserError: a file is missing or damaged; the text names it.
    """
    summary = read_object(folder / SUMMARY)
    expected, hashes = summary.pop("checksum", None), summary.get("sha256")
    if expected not in (None, checksum(summary)) or not isinstance(hashes, dict):
        raise UserError(f"{folder / SUMMARY} is damaged: its content is not what its checksum says")
    for name in sorted({STATE_FILE, *hashes, *([] if MODEL_FILE in hashes else [ADAPTER_FILE])}):
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{path} is missing")
        if sha256(path) != hashes.get(name):
            raise UserError(f"{path} is damaged: its checksum is not the one recorded")
    return summary


def refuse_other_run(run: Run, path: Path, found: Any, own: Identity) -> None:
    """Raise OtherRun if ``path``, in the folder of ``run``, names another run.

    Args:
        found: the identity in ``path``, a checkpoint or the record.
        own: the identity of ``run`` (IDENTITY).
    """
    if found != own:
        raise OtherRun(
            f"{path} belongs to another run ({_named(found)}), not to {run.path} ({_named(own)}). Put this run's own "
            "files back, or remove its folder and train again"
        )


def _named(identity: Any) -> str:
    values = identity if isinstance(identity, dict) else {}
    return ", ".join(f"{key} {values.get(key, 'unknown')}" for key in IDENTITY)


def load_weights(folder: Path, model: Any, *, keep_base: bool = False) -> None:
    """Load a checkpoint's weights into ``model``, in place. Adapters are injected if it has none.

    Args:
        keep_base: keep the base's values that the adapters change (``rosa.inject``).

    Raises:
        UserError: the checkpoint is from another model, or a file is damaged.
    """
    try:
        if (folder / MODEL_FILE).exists():
            load_model(model, str(folder / MODEL_FILE))
        else:
            load_adapter_of_base(model, folder, keep_base=keep_base)
    except UserWarning as warning:
        raise UserError(
            f"the checkpoint {folder} does not fit this model: {warning}. Give the model that the run began with back "
            "to model.name's folder, or train again under another output.path"
        ) from None
    except (rosa.AdapterError, SafetensorError, RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        reason = short_reason(error, 300)
        raise UserError(f"the checkpoint {folder} does not fit this model: {reason}") from None


def load_state(folder: Path) -> dict[str, Any]:
    """The content of state.pt, as ``training_state`` in ``utils.training.resume`` made it.

    Raises:
        UserError: the file is damaged, or has more than tensors and plain values.
    """
    path = folder / STATE_FILE
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError) as error:
        reason = short_reason(error, 200)
        raise UserError(f"{path} holds something else than tensors and numbers and is not read: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a training state")
    return value
