"""A model that PyTorch's FSDP2 has split over two processes (CPU, gloo) saves, loads and exports its adapters."""

from __future__ import annotations

from pathlib import Path

from tests.processes.conftest import TORCHRUN, launched


def test_sharded_adapters_save_load_and_export(tmp_path: Path) -> None:
    done = launched([*TORCHRUN, "-m", "tests.processes.sharded_adapters", str(tmp_path)])
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(list(tmp_path.glob("*/plain/model.safetensors"))) == 2
