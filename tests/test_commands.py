"""The commands as a user types them: the README's contract block, literally, and bad input."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, make_config, write_csv
from utils.errors import UserError
from utils.runs import find_runs
from utils.training.launch import train_all

# what a clone has; no environment, no results
SOURCES = ("train.py", "eval.py", "eval.sh", "compile_results.py", "figures.py", "jobrunner.py", "jobs.yaml",
           "configs", "rosa", "utils", "assets", "scripts")  # fmt: skip


def contract() -> list[str]:
    """The commands of the README's block that begins with train.py and dataset.cache."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "dataset.cache" in block)
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, small_model: Path, small_e2e: Path) -> Path:
    """A copy of the project whose configs/local sets only model, data path and fraction."""
    folder = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "default.yaml")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    shutil.copytree(small_e2e, folder / "e2e")
    (folder / "configs" / "local" / "default.yaml").write_text(
        f"model: {{name: {small_model}}}\ndataset: {{path: {small_e2e}}}\ntrain: {{fraction: 0.5}}\n"
    )
    return folder


def environment(**more: str) -> dict[str, str]:
    """The environment with this interpreter's commands first, and without network."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def run(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in ``folder``."""
    words = ["bash", "-c", command]
    return subprocess.run(words, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=600)


def test_the_readme_has_the_eight_commands() -> None:
    starts = [" ".join(line.split()[:2]) for line in contract()]
    assert starts == [
        "python train.py", "python eval.py", "bash eval.sh", "python compile_results.py", "tensorboard --logdir=runs",
        "python figures.py", "python jobrunner.py", "python jobrunner.py",
    ]  # fmt: skip


def test_the_contract_runs_as_written(clone: Path) -> None:
    """train (all three methods), eval, score, tabulate, TensorBoard over HTTP, figures."""
    train, evaluate, score, tabulate, board, draw = contract()[:6]
    for method in ("rosa", "lora", "none"):
        result = run(train.replace("fnmodel.name=rosa", f"fnmodel.name={method}"), clone)
        assert result.returncode == 0, result.stderr
        assert "\r" not in result.stderr  # no progress bar where there is no terminal
    runs = find_runs([clone / "runs"])
    assert {found.record()["method"] for found in runs} == {"rosa", "lora", "none"}
    assert all(found.path.parent == clone / "runs" / "e2e_nlg" for found in runs)
    for command in (evaluate, score, tabulate, draw):
        result = run(command, clone)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    for found in runs:
        assert found.scores()["BLEU"] >= 0 and found.scores()["NIST"] >= 0
    table = (clone / "runs" / "e2e_nlg" / "results.csv").read_text()
    assert all(f"{method}," in table for method in ("rosa", "lora", "none"))
    figures = clone / "runs" / "e2e_nlg" / "figures"
    assert {path.suffix for path in figures.iterdir()} == {".png", ".pdf"}
    again = run(train, clone)
    assert again.returncode == 0 and "finished already" in again.stderr
    check_tensorboard(board, clone)


def check_tensorboard(command: str, folder: Path) -> None:
    """Start it, ask it for its runs and a scalar's name, stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*command.split(), "--port", str(port), "--host", "127.0.0.1"],
        cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        tags = ""
        while "validation/perplexity" not in tags and time.monotonic() < deadline:
            time.sleep(1)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                tags = urllib.request.urlopen(url, timeout=10).read().decode()
            except OSError:
                continue
        for name in ("train/loss", "train/lr", "train/grad_norm", "validation/bits_per_char_target"):
            assert name in tags
        assert "resample/seconds" in tags
        assert tags.count("rosa-r0.05-s0") >= 1
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_help_explains(clone: Path) -> None:
    for command, words in (
        ("train.py --help", ["fnmodel", "sample_method", "configs/train.yaml"]),
        ("eval.py --help", ["--split", "--limit", "--batch-size", "--force"]),
        ("compile_results.py --help", ["--sort", "--columns", "--format"]),
        ("figures.py --help", ["--fn"]),
        ("jobrunner.py --help", ["--fn", "--retry", "--dry-run"]),
    ):
        result = run(f"python {command}", clone)
        assert result.returncode == 0, result.stderr
        for word in words:
            assert word in result.stdout, f"{command}: {word}"


def test_multirun_uses_the_same_directories(clone: Path, small_e2e: Path, tmp_path: Path) -> None:
    common = f"\"output.path='~'\" dataset.path={small_e2e} train.epochs=1 fnmodel.name=lora train.lr=1e-3 "
    common += "\"fnmodel.params.target_modules='lm_head|.*c_attn'\""
    assert run(f"python train.py -m {common} seed=0,1", clone, HOME=str(tmp_path)).returncode == 0
    assert (tmp_path / ".multirun").is_dir() and not (clone / "~").exists()
    both = find_runs([tmp_path])
    assert len(both) == 2 and all("finished: " in found.log_file.read_text() for found in both)
    single = run(f"python train.py {common} seed=1", clone, HOME=str(tmp_path))
    assert "finished already" in single.stderr
    seeds = run(f"python train.py {common} seed=0 runs=3", clone, HOME=str(tmp_path))
    assert seeds.stderr.count("finished already") == 2
    every = find_runs([tmp_path])
    assert len(every) == 3
    assert all("WARNING not adapted: lm_head: it shares its weight" in one.log_file.read_text() for one in every)


BAD = {
    "unknown method": (["fnmodel.name=rosaa"], "fnmodel.name=rosaa is not one of"),
    "unknown data set": (["dataset.name=e2f"], "dataset.name=e2f is not known"),
    "unknown sample method": (["fnmodel.rosa.sample_method=best"], "is not one of random, window, top, bottom"),
    "no number": (["train.lr=abc"], "train.lr=abc"),
    "rank 0": (["fnmodel.params.rank=0"], "rank=0 must be at least 1"),
    "rank -3": (["fnmodel.params.rank=-3"], "rank=-3 must be at least 1"),
    "rank above q": (["fnmodel.params.rank=33"], "transformer.h.0.attn.c_attn: rank=33 is above 32"),
    "no target": (["fnmodel.params.target_modules=[q_proj]"], "transformer.h.{0..1}.attn.c_attn"),
    "no data folder": (["dataset.path=/nowhere"], "dataset.path=/nowhere does not exist"),
    "no model folder": (["model.name=/nowhere"], "model.name=/nowhere is not a folder"),
    "no network for a model": (["model.name=someone/some-model"], "bundled pair"),
    "no network for data": (["dataset.path=null"], "dataset.path to a local folder"),
    "long warm-up": (["train.warmup_steps=500"], "train.warmup_steps=500 is not shorter"),
    "no such device": (["train.precision=fp16", "train.device=cpu"], "fp16 needs a CUDA device"),
    "seq_len above the positions": (["train.seq_len=257"], "train.seq_len=257 is above the 256 positions of"),
    "own data without path": (["dataset.name=pairs", "dataset.path=null"], "dataset.path is needed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_no_file(
    case: str, small_model: Path, small_e2e: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    overrides, message = BAD[case]
    with pytest.raises(UserError) as refused:
        train_all(make_config(
            f"model.name={small_model}", f"dataset.path={small_e2e}", f"output.path={tmp_path / 'runs'}", *overrides
        ), [])  # fmt: skip
    assert message in str(refused.value)
    assert not list(tmp_path.rglob("*.json"))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_an_output_that_cannot_be_written(small_model: Path, small_e2e: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output\.path: .* cannot be written"):
        train_all(make_config(
            f"model.name={small_model}", f"dataset.path={small_e2e}", f"output.path={tmp_path / 'file' / 'runs'}"
        ), [])  # fmt: skip


@pytest.fixture
def command_line(clone: Path) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    yield lambda command: run(command, clone)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train.py train.batch_sise=3", "train.batch_sise"),
        ("train.py train.lr=abc +train.foo=1", "train.foo is not a key"),
        ("eval.py nowhere", "nowhere is not a folder"),
        ("eval.py configs", "no runs under configs"),
        ("eval.py runs --limit 0", "--limit 0 must be at least 1"),
        ("eval.py runs --length-penalty nan", "--length-penalty nan must be a finite number"),
        ("compile_results.py nowhere", "nowhere"),
        ("figures.py --fn nowhere", "nowhere"),
        ("jobrunner.py --fn nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_command_lines(command_line: Any, command: str, message: str) -> None:
    result = command_line(f"python {command}")
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bad_reference_names_its_line(small_model: Path, small_e2e: Path, tmp_path: Path) -> None:
    shutil.copytree(small_e2e, tmp_path / "data")
    write_csv(tmp_path / "data" / "devset.csv", [("name[A]", "A."), ("name[B]", " ")])
    with pytest.raises(UserError, match=r"devset\.csv, line 3 \(ref\): empty"):
        train_all(make_config(
            f"model.name={small_model}", f"dataset.path={tmp_path / 'data'}", f"output.path={tmp_path / 'runs'}"
        ), [])  # fmt: skip
    assert not list((tmp_path / "runs").iterdir())


def test_the_interpreter_that_makes_the_environment_does_not_reach_eval_sh(tmp_path: Path) -> None:
    """Both read PYTHON: `make PYTHON=python3.12 demo` scored by an interpreter without the requirements."""
    probe = tmp_path / "Makefile"
    probe.write_text(f'include {ROOT}/Makefile\nprobe:\n\t@echo "[$$PYTHON]"\n')
    said = subprocess.run(
        ["make", "-s", "-f", str(probe), "PYTHON=/usr/bin/other", "probe"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"
