"""What a run reads (inputs.json): data, base model and adapter; no command goes on with others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import make_config
from tests.training.reading import stopped_at
from utils.data import digest, pair
from utils.data.pairs import Pairs
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.generation.decoding import Decoding
from utils.processes.group import Processes
from utils.runs import RUN_POINTER, Run, find_runs
from utils.runs.inputs import agree_on_inputs

QUICK = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu")


def pairs(folder: Path, **changes: str) -> Path:
    """A folder of nine pairs per split. ``changes`` maps a split to another last target."""
    folder.mkdir()
    for split in ("train", "validation", "test"):
        targets = [f"{i} is {split}" for i in range(8)] + [changes.get(split, "the end")]
        lines = [json.dumps({"prompt": f"{i} is", "target": target}) for i, target in enumerate(targets)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def copy_with(folder: Path, to: Path, name: str) -> Path:
    """A copy of an E2E folder with one word of one file replaced."""
    shutil.copytree(folder, to)
    text = (to / name).read_text(encoding="utf-8")
    assert " the " in text
    (to / name).write_text(text.replace(" the ", " a ", 1), encoding="utf-8")
    return to


def own(folder: Path) -> tuple[str, ...]:
    return ("dataset.name=pairs", f"dataset.path={folder}", "train.epochs=1")


def shift(weights: Path, target: Path) -> None:
    """Write ``weights`` to ``target`` with every number .02 larger."""
    save_file({name: value + 0.02 for name, value in load_file(weights).items()}, target, metadata={"format": "pt"})


def test_own_data_are_part_of_a_runs_identity(train: Any, tmp_path: Path) -> None:
    a, b = pairs(tmp_path / "a"), pairs(tmp_path / "b", validation="another end")
    first, second = train(*own(a)), train(*own(b))
    assert first.path != second.path
    assert first.record()["group"] != second.record()["group"]
    assert [name for name, value in first.inputs().items() if second.inputs()[name] != value] == ["data/validation"]
    renamed = Path(shutil.copytree(a, tmp_path / "renamed"))
    for file in renamed.iterdir():
        file.write_text(file.read_text().replace('"prompt"', '"question"').replace('"target"', '"answer"'))
    with pytest.raises(UserError, match=r"no field prompt; its fields: question, answer .*dataset\.prompt"):
        train(*own(renamed))
    assert train(*own(renamed), "dataset.prompt=question", "dataset.target=answer").path == first.path


def test_own_data_are_read_once_at_a_start(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, reads = Pairs.load, []

    def counting(source: Pairs, split: str, *arguments: Any) -> Any:
        reads.append(split)
        return load(source, split, *arguments)

    monkeypatch.setattr(Pairs, "load", counting)
    train(*own(pairs(tmp_path / "a")))
    assert reads == 2 * ["train", "validation"]  # to train, and then by the fixture, which finds the directory


@pytest.mark.parametrize("name", ["pairs", "e2e"])
def test_a_finished_run_says_which_test_data_it_has(
    train: Any, small_e2e: Path, tmp_path: Path, capsys: Any, name: str
) -> None:
    if name == "pairs":
        first, other = pairs(tmp_path / "a"), pairs(tmp_path / "b", test="another end")
    else:
        first, other = small_e2e, copy_with(small_e2e, tmp_path / "b", "testset_w_refs.csv")
    settings = (f"dataset.name={name}", "train.epochs=0")
    run = train(*settings, f"dataset.path={first}")
    for path in (first, other):
        capsys.readouterr()
        assert train(*settings, f"dataset.path={path}").path == run.path
        message = capsys.readouterr().err
        assert "is finished already" in message
        assert (f"python eval.py {run.path} --dataset-path {other}" in message) == (path == other)


def test_a_finished_run_is_not_taken_for_one_of_other_data(
    train: Any, small_e2e: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("train.epochs=1")
    monkeypatch.setenv(RUN_POINTER, str(tmp_path / "pointer"))
    for split, file in (("train", "trainset.csv"), ("validation", "devset.csv")):
        other = copy_with(small_e2e, tmp_path / split, file)
        with pytest.raises(UserError, match=rf"data/{split} .*dataset\.path={other}.*output\.path") as refused:
            train("train.epochs=1", f"dataset.path={other}")
        assert str(run.path) in str(refused.value)
    assert not (tmp_path / "pointer").exists(), "a search would take the run's loss"
    shutil.copytree(small_e2e, tmp_path / "moved")
    train("train.epochs=1", f"dataset.path={tmp_path / 'moved'}")
    assert (tmp_path / "pointer").read_text() == f"{run.path.resolve()}\n"
    (tmp_path / "pointer").write_text(f"{tmp_path / 'gone'}\n{run.path.resolve()}\n")
    train("train.epochs=1")
    assert (tmp_path / "pointer").read_text() == f"{run.path.resolve()}\n", "a search would wait for it"


@pytest.mark.parametrize("without_record", [False, True])
def test_a_resume_goes_on_with_the_same_data_only(
    train: Any, small_e2e: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_record: bool
) -> None:
    other = copy_with(small_e2e, tmp_path / "other", "trainset.csv")
    with stopped_at(3):
        train("train.epochs=1")
    (run,) = find_runs([tmp_path / "runs"])
    before = run.inputs_file.read_text()
    if without_record:  # the way out of a damaged one
        run.record_file.unlink()
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"data/train "):
        patch.setenv(RUN_POINTER, str(tmp_path / "pointer"))
        train("train.epochs=1", f"dataset.path={other}")
    assert not (tmp_path / "pointer").exists(), "a search would take its end, if it diverged"
    assert train("train.epochs=1").inputs_file.read_text() == before


def test_an_evaluation_is_of_the_same_data(train: Any, small_e2e: Path, tmp_path: Path) -> None:
    run = train("train.epochs=1")
    on_other = replace(QUICK, dataset_path=str(copy_with(small_e2e, tmp_path / "other", "testset_w_refs.csv")))
    assert evaluate_run(run, QUICK)[0] == "evaluated"
    assert {"data/train", "data/validation", "data/test", "model/config.json"} <= run.inputs().keys()
    shutil.copytree(small_e2e, tmp_path / "moved")
    assert evaluate_run(run, replace(QUICK, dataset_path=str(tmp_path / "moved")))[0] == "current"
    for options in (on_other, replace(on_other, force=True)):
        with pytest.raises(UserError, match=r"data/test .*dataset\.path=.*eval\.json"):
            evaluate_run(run, options)
    run.eval_file.unlink()
    assert evaluate_run(run, on_other)[0] == "evaluated"
    dev = copy_with(small_e2e, tmp_path / "dev", "devset.csv")
    with pytest.raises(UserError, match="data/validation "):
        evaluate_run(run, replace(QUICK, split="validation", dataset_path=str(dev)))


@pytest.mark.parametrize("name", ["e2e", "pairs"])
def test_a_configuration_that_was_edited_is_noticed(train: Any, tmp_path: Path, name: str) -> None:
    run = train("train.epochs=1", *(own(pairs(tmp_path / "a")) if name == "pairs" else ()))
    evaluate_run(run, QUICK)
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


@pytest.mark.parametrize("method", ["rosa", "none"])
def test_another_base_in_the_models_folder_is_refused(
    train: Any, small_model: Path, tmp_path: Path, method: str
) -> None:
    """By the resume, by the evaluation, and by the command of the finished run. An adapter knows its base by itself."""
    base = Path(shutil.copytree(small_model, tmp_path / "base"))
    used, original = base / "model.safetensors", small_model / "model.safetensors"
    settings = (f"model.name={base}", f"fnmodel.name={method}", "train.epochs=2")
    with stopped_at(5):
        train(*settings)
    shift(original, used)
    with pytest.raises(UserError, match=rf"model/model\.safetensors .*model\.name={base}"):
        train(*settings)
    shutil.copy(original, used)
    run = train(*settings)
    shift(original, used)
    for again in (lambda: train(*settings), lambda: evaluate_run(run, QUICK)):
        with pytest.raises(UserError, match=r"model/model\.safetensors "):
            again()
    if method != "none":
        run.inputs_file.unlink()
        with pytest.raises(UserError, match=r"back to model\.name's folder"):
            evaluate_run(run, QUICK)


def test_another_tokenizer_is_refused_and_new_files_are_not(train: Any, small_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(small_model, tmp_path / "base"))
    run = train(f"model.name={base}", "train.epochs=1")
    (base / "README.md").write_text("written later")
    evaluate_run(run, QUICK)
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace('"a"', '"~"', 1))
    with pytest.raises(UserError, match=r"model/tokenizer\.json .*model\.name="):
        evaluate_run(run, replace(QUICK, force=True))
    shutil.copy(small_model / "tokenizer.json", base)
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"model/tokenizer_config\.json was \w{8}, is none"):
        train(f"model.name={base}", "train.epochs=1")


def test_another_version_of_a_model_of_the_hub_is_refused(
    train: Any, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache of a model, which its owner then replaces: first its page, then its weights."""
    cache = tmp_path / "models--someone--small"
    versions = [cache / "snapshots" / (digit * 40) for digit in "abc"]
    for version in versions:
        shutil.copytree(small_model, version)
    (versions[1] / "README.md").write_text("new")
    shift(small_model / "model.safetensors", versions[2] / "model.safetensors")
    main = cache / "refs" / "main"
    main.parent.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    main.write_text(versions[0].name)
    with stopped_at(5):
        train("model.name=someone/small", "train.epochs=2")
    main.write_text(versions[2].name)
    with pytest.raises(UserError, match=r"model/model\.safetensors .*model\.name=someone"):
        train("model.name=someone/small", "train.epochs=2")
    main.write_text(versions[1].name)
    run = train("model.name=someone/small", "train.epochs=2")
    assert run.record()["status"] == "finished"
    main.write_text(versions[2].name)
    with pytest.raises(UserError, match=r"model/model\.safetensors "):
        evaluate_run(run, QUICK)


def test_digests_tell_where_texts_end() -> None:
    assert digest([pair("a", "bc")]) != digest([pair("ab", "c")])
    assert digest([pair("a", "b"), pair("c", "d")]) != digest([pair("c", "d"), pair("a", "b")])
    assert digest([pair("a", "b", "here")]) == digest([pair("a", "b", "there")])


class Two(Processes):
    """The main process of two, of which the other one gathers ``theirs``."""

    theirs: ClassVar[dict[str, tuple[str, str]]] = {}

    def run_on_main(self, decide: Callable[[], Any]) -> Any:
        return decide()

    def gather(self, value: Any) -> list[Any]:
        return [value, self.theirs]


def test_processes_that_read_other_data_than_the_main_one_stop_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, found = make_config(), {"data/train": "a", "data/validation": "b"}
    agree_on_inputs(Run(tmp_path), found, config, Two(0, 2))
    monkeypatch.setattr(Two, "theirs", {"data/validation": ("b", "c")})
    with pytest.raises(UserError, match="data/validation "):
        agree_on_inputs(Run(tmp_path), found, config, Two(0, 2))
