"""The data of a run: part of its identity where a path names them, and compared wherever a run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.conftest import make_config
from utils.data import digest, pair
from utils.data.pairs import Pairs
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.generation.decoding import Decoding
from utils.processes.group import Processes
from utils.runs import RUN_POINTER, Run, find_runs
from utils.runs.digests import agree_on_data, identify_run
from utils.runs.identity import group_hash, run_directory
from utils.training import loop

# -- the data ------------------------------------------------------------------------------------------------------


def pairs(folder: Path, **changes: str) -> Path:
    """A folder of nine pairs per split. ``changes`` maps a split to another last target."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        targets = [f"{i} is {split}" for i in range(8)] + [changes.get(split, "the end")]
        lines = [json.dumps({"prompt": f"{i} is", "target": target}) for i, target in enumerate(targets)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def copy_with(folder: Path, to: Path, name: str, old: str, new: str) -> Path:
    """A copy of a data folder with a text of one file replaced."""
    shutil.copytree(folder, to)
    text = (to / name).read_text(encoding="utf-8")
    assert old in text
    (to / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return to


def own(folder: Path) -> tuple[str, ...]:
    return ("dataset.name=pairs", f"dataset.path={folder}", "train.epochs=1")


def test_own_data_are_part_of_a_runs_identity(train: Any, tmp_path: Path) -> None:
    a, b = pairs(tmp_path / "a"), pairs(tmp_path / "b", validation="another end")
    first, second = train(*own(a)), train(*own(b))
    assert first.path != second.path
    assert first.record()["group"] != second.record()["group"]
    assert first.record()["data_sha256"]["train"] == second.record()["data_sha256"]["train"]
    assert first.record()["data_sha256"]["validation"] != second.record()["data_sha256"]["validation"]
    shutil.copytree(a, tmp_path / "moved")
    assert train(*own(tmp_path / "moved")).path == first.path
    renamed = Path(shutil.copytree(a, tmp_path / "renamed"))
    for file in renamed.iterdir():
        file.write_text(file.read_text().replace('"prompt"', '"question"').replace('"target"', '"answer"'))
    with pytest.raises(UserError, match=r"no field prompt; its fields: question, answer .*dataset\.prompt"):
        train(*own(renamed))
    assert train(*own(renamed), "dataset.prompt=question", "dataset.target=answer").path == first.path


@pytest.mark.parametrize("name", ["pairs", "e2e"])
def test_a_finished_run_says_which_test_data_it_has(
    train: Any, small_e2e: Path, tmp_path: Path, capsys: Any, name: str
) -> None:
    if name == "pairs":
        first, other = pairs(tmp_path / "a"), pairs(tmp_path / "b", test="another end")
    else:
        first, other = small_e2e, copy_with(small_e2e, tmp_path / "b", "testset_w_refs.csv", " the ", " a ")
    settings = (f"dataset.name={name}", "train.epochs=0")
    run = train(*settings, f"dataset.path={first}")
    for path in (first, other):
        capsys.readouterr()
        assert train(*settings, f"dataset.path={path}").path == run.path
        message = capsys.readouterr().err
        assert "is finished already" in message
        assert (f"python eval.py {run.path} --dataset-path {other}" in message) == (path == other)
        assert (str(first) in message) == (path == other)


def test_own_data_are_read_once_at_a_start(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, reads = Pairs.load, []

    def counting(source: Pairs, split: str, *arguments: Any) -> Any:
        reads.append(split)
        return load(source, split, *arguments)

    monkeypatch.setattr(Pairs, "load", counting)
    train(*own(pairs(tmp_path / "a")))
    assert reads == 2 * ["train", "validation"]  # to train, and then by the fixture, which finds the directory


@pytest.mark.parametrize("recorded", ["none", "other"])
def test_a_run_of_own_data_of_before_is_found_again(train: Any, tmp_path: Path, recorded: str) -> None:
    """Its hash does not include the data: it is the same run unless its record has digests of other data."""
    config = make_config(*own(pairs(tmp_path / "a")), f"output.path={tmp_path / 'runs'}")
    old = run_directory(config)
    old.mkdir(parents=True)
    digests = {} if recorded == "none" else {"data_sha256": {"train": "0"}}
    (old / "run.json").write_text(json.dumps({"status": "interrupted", **digests}))
    path, group = identify_run(config)
    assert (path == old) == (group == group_hash(config)) == (recorded == "none")


def test_a_finished_run_without_digests_says_so(train: Any, capsys: Any) -> None:
    run = train("train.epochs=0")
    record = run.record()
    del record["data_sha256"]
    run.record_file.write_text(json.dumps(record))
    capsys.readouterr()
    train("train.epochs=0")
    assert "finished already (its record, of an earlier version, does not say on which" in str(capsys.readouterr())


@pytest.mark.parametrize(("name", "split"), [("trainset.csv", "train"), ("devset.csv", "validation")])
def test_a_finished_run_is_not_taken_for_one_of_other_data(
    train: Any, small_e2e: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    run = train("train.epochs=1")
    monkeypatch.setenv(RUN_POINTER, str(tmp_path / "pointer"))
    other = copy_with(small_e2e, tmp_path / "other", name, " the ", " a ")
    with pytest.raises(UserError, match=f"its {split} data are not what dataset.path={other} has now") as refused:
        train("train.epochs=1", f"dataset.path={other}")
    assert str(run.path) in str(refused.value) and "another output.path" in str(refused.value)
    assert not (tmp_path / "pointer").exists(), "a search would take the run's loss"
    with pytest.raises(UserError, match="does not exist"):
        train("train.epochs=1", f"dataset.path={tmp_path / 'nowhere'}")
    shutil.copytree(small_e2e, tmp_path / "moved")
    train("train.epochs=1", f"dataset.path={tmp_path / 'moved'}")
    assert (tmp_path / "pointer").read_text() == f"{run.path.resolve()}\n"
    (tmp_path / "pointer").write_text(f"{tmp_path / 'gone'}\n{run.path.resolve()}\n")
    train("train.epochs=1")
    assert (tmp_path / "pointer").read_text() == f"{run.path.resolve()}\n", "a search would wait for it"


def test_a_resume_goes_on_with_the_same_data_only(
    train: Any, small_e2e: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy_with(small_e2e, tmp_path / "other", "trainset.csv", " the ", " a ")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", lambda training: (_ for _ in ()).throw(RuntimeError("stopped")))
        with pytest.raises(RuntimeError, match="stopped"):
            train()
    (run,) = find_runs([tmp_path / "runs"])
    before = run.record()["data_sha256"]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="its train data are not what"):
        patch.setenv(RUN_POINTER, str(tmp_path / "pointer"))
        train(f"dataset.path={other}")
    assert not (tmp_path / "pointer").exists(), "a search would take its end, if it diverged"
    record = run.record()
    del record["data_sha256"]  # like a record of an earlier version
    run.record_file.write_text(json.dumps(record))
    assert train().record()["data_sha256"] == before


def test_an_evaluation_is_of_the_same_data(train: Any, small_e2e: Path, tmp_path: Path) -> None:
    run = train("train.epochs=1")
    quick = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu")
    other = copy_with(small_e2e, tmp_path / "other", "testset_w_refs.csv", " the ", " a ")
    on_other = replace(quick, dataset_path=str(other))
    assert evaluate_run(run, quick)[0] == "evaluated"
    assert set(run.record()["data_sha256"]) == {"train", "validation", "test"}
    assert run.record()["status"] == "finished"
    shutil.copytree(small_e2e, tmp_path / "moved")
    assert evaluate_run(run, replace(quick, dataset_path=str(tmp_path / "moved")))[0] == "current"
    for options in (on_other, replace(on_other, force=True)):
        with pytest.raises(UserError, match=r"its test data are not what .*remove its eval\.json"):
            evaluate_run(run, options)
    run.eval_file.unlink()
    assert evaluate_run(run, on_other)[0] == "evaluated"
    dev = copy_with(small_e2e, tmp_path / "dev", "devset.csv", " the ", " a ")
    with pytest.raises(UserError, match="its validation data are not what"):
        evaluate_run(run, replace(quick, split="validation", dataset_path=str(dev)))


@pytest.mark.parametrize("name", ["e2e", "pairs"])
def test_a_configuration_that_was_edited_is_noticed(train: Any, tmp_path: Path, name: str) -> None:
    run = train("train.epochs=1", *(own(pairs(tmp_path / "a")) if name == "pairs" else ()))
    evaluate_run(run, Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu"))
    text = run.config_file.read_text(encoding="utf-8")
    for old, new in (("rank: 4", "rank: 5"), ("seed: 0", "seed: 1")):
        assert old in text
        run.config_file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.yaml was changed after the training.*overrides\.yaml"):
            evaluate_run(run, Options(force=True, device="cpu"))


def test_a_checkpoint_that_is_gone_is_named_with_the_way_out(train: Any) -> None:
    run = train("train.epochs=1")
    run.best.unlink()
    with pytest.raises(UserError, match=r"checkpoints/best is gone.*remove .* and train again"):
        evaluate_run(run, Options(device="cpu"))


def test_digests_tell_where_texts_end() -> None:
    assert digest([pair("a", "bc")]) != digest([pair("ab", "c")])
    assert digest([pair("a", "b"), pair("c", "d")]) != digest([pair("c", "d"), pair("a", "b")])
    assert digest([pair("a", "b", "here")]) == digest([pair("a", "b", "there")])


class Pair(Processes):
    """The main process of two, of which the other one gathers ``theirs``."""

    theirs: ClassVar[list[str]] = []

    def run_on_main(self, decide: Callable[[], Any]) -> Any:
        return decide()

    def gather(self, value: Any) -> list[Any]:
        return [value, self.theirs]


def test_processes_that_read_other_data_than_the_main_one_stop_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, found = make_config().dataset, {"train": "a", "validation": "b"}
    agree_on_data(Run(tmp_path), found, dataset, Pair(0, 2))
    monkeypatch.setattr(Pair, "theirs", ["validation"])
    with pytest.raises(UserError, match="its validation data are not what"):
        agree_on_data(Run(tmp_path), found, dataset, Pair(0, 2))
