"""The formulas of bytes in ``benchmarks/cost_model.py`` against what two processes send (CPU, gloo)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cost_model import sent_by_resample, sent_by_step, sizes_of
from tests.processes.conftest import TORCHRUN, launched
from tests.processes.sent_bytes import PASSES, build


def test_bytes_of_a_step_and_of_a_resample(tmp_path: Path) -> None:
    """Whole models average their gradients (DDP); sharded ones gather weights in each pass too (FSDP2)."""
    done = launched([*TORCHRUN, "-m", "tests.processes.sent_bytes", str(tmp_path / "found")])
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads((tmp_path / "found").read_text())
    assert len(found) == 6
    for name, sent in found.items():
        method, sharding, precision = name.split()
        sizes, sharded = sizes_of(build(method)), sharding == "fsdp"
        expected = sent_by_step(sizes, 2, sharded, PASSES, 2 if precision == "bf16" else 4)
        assert sent["step"] == pytest.approx(expected), name
        assert sent["resample"] == (sent_by_resample(sizes, 2, sharded) if method == "rosa" else 0), name
        assert sent["factorised"] == (len(sizes.layers) if method == "rosa" else 0), name  # each layer once in all
