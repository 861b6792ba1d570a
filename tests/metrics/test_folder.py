"""The registry of metrics, the cost of importing it, and the cache of METEOR's tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import utils.metrics
from utils.errors import UserError
from utils.io import array_cache
from utils.metrics import OFFICIAL, metrics, register
from utils.metrics.meteor15 import resources
from utils.metrics.meteor15.phrases import PhraseTable

FOLDER = Path(utils.metrics.__file__).parent


def test_every_file_in_the_folder_is_a_metric() -> None:
    modules = {metric.__module__.rsplit(".", 1)[1] for metric in metrics().values()}
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "__main__"}
    assert modules == files
    assert list(metrics())[: len(OFFICIAL)] == list(OFFICIAL)
    assert all(metric.__doc__ for metric in metrics().values())


def test_a_name_belongs_to_one_metric() -> None:
    assert "BLEU" in metrics()  # imports the metrics if no other test has
    with pytest.raises(ValueError, match="two scores are named 'BLEU'"):
        register(type("Other", (utils.metrics.Metric,), {"names": ("BLEU",)}))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, utils.metrics; print(sorted({'numpy', 'sacrebleu', 'nltk', 'torch'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[np.ndarray, int]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def make() -> np.ndarray:
        calls.append(1)
        return np.arange(12, dtype=np.uint64).reshape(6, 2)

    def get(origin: str) -> tuple[np.ndarray, int]:
        return array_cache.cached_array("table", origin, make), len(calls)

    return get


def test_the_cache_is_used_and_made_again_for_another_origin(build: Callable[[str], tuple[np.ndarray, int]]) -> None:
    assert [build(origin)[1] for origin in ("a", "a", "b", "b", "a")] == [1, 1, 2, 2, 3]
    assert build("a")[0].tolist() == np.arange(12).reshape(6, 2).tolist()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "longer"])
def test_a_damaged_cache_is_made_again(
    build: Callable[[str], tuple[np.ndarray, int]], tmp_path: Path, damage: str
) -> None:
    build("a")
    path = array_cache.cache_folder() / "table.bin"
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    changed = {"flip": flipped, "cut": content[:-8], "empty": b"", "text": b"nonsense\n", "longer": content + b"x"}
    path.write_bytes(changed[damage])
    array, calls = build("a")
    assert calls == 2 and array.tolist() == np.arange(12).reshape(6, 2).tolist()
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["table.bin"]


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file where the cache folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    array = array_cache.cached_array("table", "a", lambda: np.ones((2, 2), dtype=np.uint64))
    assert array.tolist() == [[1, 1], [1, 1]]
    assert "cannot be written" in capsys.readouterr().err


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as without HOME and without a user database
    monkeypatch.chdir(tmp_path)
    assert array_cache.cached_array("table", "a", lambda: np.ones((2, 2), dtype=np.uint64)).tolist() == [[1, 1], [1, 1]]
    assert not list(tmp_path.iterdir())


def test_hashes_differ_between_phrases_and_do_not_depend_on_other_phrases() -> None:
    phrases = ["a", "b", "ab", "ba", "a b", "b a", "é", "", "the price range", "the price  range"]
    together = resources.hash_phrases(phrases)
    assert len(set(together.tolist())) == len(phrases)
    assert [int(resources.hash_phrases([phrase])[0]) for phrase in phrases] == together.tolist()


def test_paraphrases_between_two_texts_are_in_the_order_of_the_table() -> None:
    rows = [("cheap", "low cost"), ("cheap", "inexpensive"), ("cheap", "gone"), ("low cost", "cheap"), ("pub", "bar")]
    pairs = np.array([resources.hash_phrases(list(row)) for row in rows])
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    table = PhraseTable(pairs, ["cheap", "pub", "is"])
    from_references, from_predictions = table.between(["inexpensive", "low cost", "is"])
    assert from_references == {"cheap": ["low cost", "inexpensive"]}
    assert from_predictions == {"low cost": ["cheap"]}
    assert table.between([]) == ({}, {})


def test_a_missing_package_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --force-reinstall pycocoevalcap"):
        resources.package_file(resources.JAR)
