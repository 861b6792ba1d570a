"""The tutorial's commands run one after the other as they are printed, but that the trainings read less."""

from __future__ import annotations

import glob
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.docs.collect import ROOT
from tests.docs.blocks import blocks, commands
from tests.test_commands import environment

LESS = {"train.py": ["train.fraction=0.05", "train.validation_fraction=0.05", "logging.samples=0"]}
ELSEWHERE = ("tensorboard",)  # it serves until it is stopped: tests/test_commands.py starts it


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line in ``folder``; Python in this process, which has imported what it needs."""
    program, file, *words = [path for word in shlex.split(command) for path in glob.glob(word) or [word]]
    if program == "python":
        module = words.pop(0) if file == "-m" else None
        monkeypatch.setattr(sys, "argv", [file, *words, *LESS.get(file, [])])
        try:
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / file), run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, command
    else:
        shell = re.sub(r"\b(\w+\.sh)\b", rf"{ROOT}/\1", command)
        subprocess.run(["bash", "-c", shell], cwd=folder, env=environment(), check=True, timeout=300)


def test_the_tutorial_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("docs/tutorial.md"):
        for command in commands(block):
            if not block.inline and not command.startswith(ELSEWHERE):
                run(command, tmp_path, monkeypatch)
    table = (tmp_path / "runs" / "e2e_sample" / "results.md").read_text(encoding="utf-8")
    assert "ROSA" in table and "LoRA" in table and "BLEU" in table
    assert list((tmp_path / "runs" / "e2e_sample" / "figures").glob("*.png"))
    assert list((tmp_path / "runs" / "e2e_sample").glob("tiny-rosa-*/export/merged/model.safetensors"))
