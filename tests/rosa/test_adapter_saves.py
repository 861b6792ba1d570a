"""``save_adapter`` by several processes at once, and what killed ones leave."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import rosa
from rosa.files import ADAPTER_FILE, LEFTOVER_SECONDS, replace_files
from tests.rosa.cases import adapt, logits, make_model


def test_two_saves_at_once_do_not_meet(tmp_path: Path) -> None:
    """As all processes of DDP do: here one saves while the other is about to rename its files."""
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    rosa.save_adapter(model, tmp_path)
    content = (tmp_path / ADAPTER_FILE).read_bytes()

    def write(path: Path) -> None:
        path.write_bytes(content)
        rosa.save_adapter(model, tmp_path)
        assert path.read_bytes() == content

    replace_files({tmp_path / ADAPTER_FILE: write})
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter.safetensors",
        "adapter_config.json",
        "frozen.safetensors",
    ]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{ADAPTER_FILE}{middle}.tmp" for middle in (".1-ab", ".2-cd"))
    earlier, other = tmp_path / f".{ADAPTER_FILE}.tmp", tmp_path / "notes.tmp"
    for path in (old, new, earlier, other):
        path.touch()
        if path != new:
            long_ago = path.stat().st_mtime - LEFTOVER_SECONDS - 1
            os.utime(path, (long_ago, long_ago))
    rosa.save_adapter(adapt("gpt2", rosa.LoraConfig(rank=2)), tmp_path)
    assert not old.exists() and not earlier.exists()
    assert new.exists() and other.exists()  # that of a process that still writes, and another's file
