"""Hydra's errors at the command line, in words that say what to type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import ROOT
from utils.config.hydra_errors import explain, hydra_errors_explained


def composing(override: str) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        name = override.removeprefix("--config-name=")
        compose(name, overrides=[]) if name != override else compose("train", overrides=override.split(" "))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "train.lrr is not a key; did you mean lr?"),
        ("trian.lr=1", "trian is not a key; did you mean train?"),
        ("experimentt=e2e", "experimentt is not a key; did you mean experiment?"),
        ("fnmodel.params={rankk:1}", "fnmodel.params.rankk is not a key; did you mean rank?"),
        ("experiment=elli5", "Did you mean eli5? Known: e2e, eli5"),
        (
            "output.path=/x/Ü_CJK",
            "two pairs of quotes, one for the shell and one for Hydra: \"output.path='/x/Ü_CJK'\"",
        ),
        ("output.path=a=b", "\"output.path='a=b'\""),
        ("seed", "seed is not an override, which is KEY=VALUE"),
        ("~train train.epochs=2", "train is missing: ~train deletes it together with its overrides"),
        ("--config-name=nope", "--config-name nope is not a file of configs"),
        ("train.lr=1,2", "To sweep over it, add --multirun"),
    ],
)
def test_what_hydra_refuses_is_told_with_the_way_out(override: str, message: str) -> None:
    with pytest.raises(Exception) as refused:
        composing(override)
    text = explain(refused.value)
    assert message in text and "\n" not in text


@pytest.mark.parametrize("override", ["output.path='/x/Ü_CJK'", "output.path='a=b'"])
def test_the_quotes_that_are_suggested_work(override: str) -> None:
    composing(override)


def test_hydras_errors_end_as_all_others(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as ended, hydra_errors_explained():
        composing("train.lrr=1")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: train.lrr is not a key; did you mean lr?\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override"), hydra_errors_explained():
        composing("train.lrr=1")


@pytest.mark.parametrize("words", [["--lr", "1e-3"], ["train.epochs=1", "-m", "seed=0,1"]])
def test_words_that_are_no_settings_are_told_with_the_way_out(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert "such as train.lr=1e-3" in message and ": python train.py -m fnmodel.name=lora train.lr=" in message


@pytest.mark.parametrize("words", [["--experimental-rerun", "x"], ["--exp=x"]])
def test_no_pickle_is_read(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as ended, hydra_errors_explained():
        raise AssertionError
    assert ended.value.code == 2 and "--experimental-rerun reads a pickle" in capsys.readouterr().err


def test_an_unforeseen_error_of_the_training_keeps_its_traceback(tmp_path: Path) -> None:
    program = (
        "import runpy, utils.training.launch as launch\n"
        "launch.train_all = lambda *given: {}['a bug']\n"
        "runpy.run_path('train.py', run_name='__main__')"
    )
    words = [sys.executable, "-c", program, "dataset.name=e2e_sample", "model.name=tiny", f"output.path={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1] == "KeyError: 'a bug'"


def test_a_reader_of_the_help_may_stop_early() -> None:
    words = [sys.executable, "train.py", "--help"]
    plain = {**os.environ, "PYTHONUNBUFFERED": ""}  # the text is then written at the end only
    process = subprocess.Popen(words, cwd=ROOT, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == ("", 141)
