"""Evaluation of runs: files and losses, current evaluations, failures, and generated texts."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import rosa
import utils.evaluation as evaluation_module
from tests.conftest import write_csv
from utils.data import get_source
from utils.data.e2e import E2E
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run, evaluate_runs, group_by_source
from utils.generation.decoding import Decoding
from utils.generation.generate import generate, generate_tokens
from utils.io.files import lock, sha256
from utils.models import losses
from utils.models.loading import BUNDLED, load_model, load_tokenizer
from utils.runs import Run, find_runs
from utils.runs.checkpoint_folder import load_weights

SHORT = Decoding(num_beams=2, max_new_tokens=8)
FAST = Options(decoding=SHORT, device="cpu")


@pytest.fixture
def roots(train: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A copy of the runs of three methods, which are trained once."""
    trained = tmp_path_factory.getbasetemp() / "runs-of-three-methods"
    if not trained.exists():
        for method in ("rosa", "lora", "none"):
            train(f"fnmodel.name={method}", "train.epochs=1")
        (tmp_path / "runs").rename(trained)
    shutil.copytree(trained, tmp_path / "runs", symlinks=True)
    return [str(tmp_path / "runs")]


def test_all_finished_runs_are_evaluated(roots: list[str], small_e2e: Path) -> None:
    assert evaluate_runs(roots, FAST) == 0
    groups = group_by_source(E2E().load("test", small_e2e, None))
    for run in find_runs(roots):
        evaluation = run.evaluation()
        assert evaluation["items"] == evaluation["predictions"] == len(groups) > 1
        assert len(run.predictions().read_text().split("\n")) == len(groups) + 1
        blocks = run.references().read_text().removesuffix("\n").split("\n\n")
        assert [block.split("\n") for block in blocks] == [[e.reference for e in group] for group in groups]
        assert evaluation["loss"] == evaluation["loss_target"] != evaluation["loss_all"]
        assert evaluation["perplexity"] == pytest.approx(torch.tensor(evaluation["loss"]).exp().item(), rel=1e-5)


def test_runs_on_the_same_data_read_them_once(roots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    splits, load = [], E2E.load
    monkeypatch.setattr(E2E, "load", lambda self, split, *where: splits.append(split) or load(self, split, *where))
    for _ in range(2):  # the second time all are current
        assert evaluate_runs(roots, FAST) == 0
    assert splits == ["test"] * 2


def test_the_validation_split_has_the_loss_that_training_recorded(roots: list[str]) -> None:
    assert evaluate_runs(roots, Options(split="validation", decoding=SHORT, device="cpu")) == 0
    for run in find_runs(roots):
        assert run.evaluation("validation")["loss"] == pytest.approx(run.record()["best"]["loss"], abs=1e-5)
        assert run.evaluation("test") is None


def test_targets_that_the_decoding_cannot_reach_are_counted(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    run = train("dataset.name=phone_book", "dataset.path=null", "dataset.size=30", "train.epochs=0")
    tokenizer = load_tokenizer("tiny")
    tokens = [tokenizer.tokenize(e.prompt + e.target) for e in get_source("phone_book", 30).load("test", None, None)]
    lost = sum(len(set(one)) < len(one) for one in tokens)
    assert 0 < lost < 30
    evaluate_run(run, dataclasses.replace(FAST, decoding=Decoding(num_beams=1, no_repeat_ngram_size=1)))
    assert (
        f"{lost} of 30 targets repeat a sequence of 1 tokens, of the prompt or their own: only "
        "--no-repeat-ngram-size 0 can generate them" in caplog.text
    )
    caplog.clear()
    evaluate_run(run, dataclasses.replace(FAST, decoding=Decoding(num_beams=1, no_repeat_ngram_size=0)))
    assert "targets repeat" not in caplog.text


def test_own_targets_that_copy_the_prompt_are_counted(train: Any, tmp_path: Path, caplog: Any) -> None:
    """That is those that the published decoding cannot give; and test samples that were training samples."""
    rows = [{"prompt": f"Copy red stone town market {i}.", "target": f"red stone town market {i}."} for i in range(4)]
    for split, lines in (("train", rows[:3]), ("validation", rows[3:]), ("test", rows[2:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = train("dataset.name=pairs", f"dataset.path={tmp_path}", "train.epochs=0")
    evaluate_run(run, Options(device="cpu", decoding=Decoding(num_beams=1, max_new_tokens=3)))
    assert "2 of 2 targets repeat a sequence of 4 tokens" in caplog.text
    assert "1 of 2 test samples are training samples too" in caplog.text
    evaluation = run.evaluation()
    assert evaluation is not None and evaluation["known"] == "1 of 2 test samples are training samples too"
    assert evaluation["unfinished"] == 2
    assert "2 of 2 texts are cut at 3 tokens (--max-new-tokens)" in caplog.text


def test_a_trial_of_a_search_is_evaluated_on_request_only(train: Any) -> None:
    run = train("fnmodel.name=lora", "train.epochs=1", "output.search=true")
    assert evaluate_run(run, FAST)[0] == "skipped" and not run.eval_file.exists()
    assert evaluate_run(run, dataclasses.replace(FAST, force=True))[0] == "evaluated"


def test_only_current_evaluations_are_skipped(roots: list[str], capsys: Any) -> None:
    def outcomes(options: Options) -> list[str]:
        assert evaluate_runs(roots, options) == 0
        table = capsys.readouterr().out.split("status     run\n")[1]
        return [line.split()[0] for line in table.splitlines()[:3]]

    assert outcomes(FAST) == ["evaluated"] * 3
    assert outcomes(FAST) == ["current"] * 3
    changed = find_runs(roots)[0]
    changed.predictions().write_text("tampered\n")
    assert sorted(outcomes(FAST)) == ["current", "current", "evaluated"]
    assert outcomes(Options(decoding=SHORT, device="cpu", force=True)) == ["evaluated"] * 3
    assert outcomes(Options(decoding=Decoding(num_beams=1, max_new_tokens=8), device="cpu")) == ["evaluated"] * 3
    first = Options(decoding=SHORT, device="cpu", limit=1)
    assert evaluate_runs(roots, first) == 1  # it would replace complete evaluations
    assert "evaluated on all items already: --force replaces that by the first 1" in capsys.readouterr().out
    assert outcomes(dataclasses.replace(first, force=True, limit=2)) == ["evaluated"] * 3
    assert evaluate_runs(roots, first) == 1
    assert "evaluated on the first 2 items already: --force" in capsys.readouterr().out
    assert outcomes(dataclasses.replace(first, force=True)) == ["evaluated"] * 3
    assert outcomes(FAST) == ["evaluated"] * 3  # the previous call evaluated one item only
    assert outcomes(dataclasses.replace(FAST, precision="bf16")) == ["evaluated"] * 3  # auto is fp32 here
    assert outcomes(FAST) == ["current"] * 3  # any precision will do


def test_an_evaluation_on_data_that_changed_is_not_current(train: Any, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        (data / f"{split}.csv").write_text("prompt,target\na,b\nc,d\n")
    run = train("dataset.name=pairs", f"dataset.path={data}", "train.epochs=0")
    assert [evaluate_run(run, FAST)[0] for _ in range(2)] == ["evaluated", "current"]
    (data / "test.csv").write_text("prompt,target\na,b\nc,e\n")
    with pytest.raises(UserError, match=r"data/test .*dataset\.path=.* remove its eval\.json"):
        evaluate_run(run, FAST)
    run.eval_file.unlink()
    assert evaluate_run(run, FAST)[0] == "evaluated"
    shutil.rmtree(data)
    assert evaluate_run(run, FAST)[0] == "current"


def test_one_failure_does_not_stop_the_others(roots: list[str], capsys: Any) -> None:
    broken, unfinished, good = find_runs(roots)
    for path in broken.best.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    unfinished.update_record(status="interrupted")
    assert evaluate_runs(roots, FAST) == 1
    printed = capsys.readouterr()
    assert good.evaluation() and not broken.evaluation() and not broken.predictions().exists()
    assert "is damaged" in printed.err and str(broken.path) in printed.err
    assert f"skipped    {unfinished.path}: training is interrupted" in printed.out
    assert "1 of 3 runs are evaluated" in printed.out


def test_a_run_that_another_process_evaluates_is_refused(train: Any, capsys: Any) -> None:
    run = train("train.epochs=1")
    with lock(run.path / ".eval.lock", "evaluated"):
        assert evaluate_runs([str(run.path)], FAST) == 1
    assert "already being evaluated by process" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(train: Any, capsys: Any) -> None:
    run = train("train.epochs=1")
    config = run.config_file.read_text()
    run.config_file.write_text(config.replace(f"name: {run.record()['model']}", "name: tiny"))
    assert evaluate_runs([str(run.path)], FAST) == 1
    assert "model/model.safetensors was" in capsys.readouterr().err
    run.inputs_file.unlink()
    assert evaluate_runs([str(run.path)], FAST) == 1
    assert "does not fit this model" in capsys.readouterr().err


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        evaluate_runs([str(tmp_path / "nowhere")], FAST)
    with pytest.raises(UserError, match="no runs under"):
        evaluate_runs([str(tmp_path)], FAST)


def test_a_copied_folder_of_runs_can_be_evaluated(roots: list[str], tmp_path: Path) -> None:
    """A copy may have folders instead of links. A run is found by its record, not by its original path."""
    shutil.copytree(roots[0], tmp_path / "elsewhere", symlinks=False)
    assert evaluate_runs([str(tmp_path / "elsewhere")], FAST) == 0


@pytest.mark.parametrize("beams", [1, 4])
def test_batched_output_equals_one_by_one(beams: int) -> None:
    model, tokenizer = load_model(str(BUNDLED["tiny"])), load_tokenizer(str(BUNDLED["tiny"]))
    from utils.data.e2e_sample import E2ESample

    groups = group_by_source(E2ESample().load("test", None, None))[:12]
    prompts = [group[0].prompt for group in groups]
    assert len({len(tokenizer(prompt)["input_ids"]) for prompt in prompts}) > 3
    decoding = Decoding(num_beams=beams, max_new_tokens=24)
    batched = generate(model, tokenizer, prompts, decoding, batch_size=5)
    single = [generate(model, tokenizer, [prompt], decoding, batch_size=1)[0] for prompt in prompts]
    assert batched == single
    assert len(set(batched)) > 6


def test_no_four_tokens_repeat(small_model: Path) -> None:
    model, tokenizer = load_model(str(small_model)), load_tokenizer(str(small_model))
    prompt = "Input: name[A] Output:"

    def most(size: int) -> int:
        decoding = Decoding(num_beams=1, max_new_tokens=64, no_repeat_ngram_size=size)
        ids = tokenizer(prompt)["input_ids"] + generate_tokens(model, tokenizer, [prompt], decoding, 1)[0]
        grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
        return max(map(grams.count, grams))

    assert most(4) == 1 < most(0)


def test_generation_beyond_the_positions_is_refused(small_model: Path) -> None:
    model, tokenizer = load_model(str(small_model)), load_tokenizer(str(small_model))
    with pytest.raises(UserError, match=r"256 positions: lower --max-new-tokens to at most \d+"):
        generate(model, tokenizer, ["Input: name[A] Output:"], Decoding(max_new_tokens=250), 1)


def test_a_prompt_beyond_the_positions_is_refused_with_the_way_out(small_model: Path) -> None:
    model, tokenizer = load_model(str(small_model)), load_tokenizer(str(small_model))
    with pytest.raises(UserError, match=r"\('a b c d a b .*256 positions: shorten the prompt"):
        generate(model, tokenizer, ["short", "a b c d " * 100], SHORT, 1)


def test_more_beams_than_tokens_in_the_vocabulary_are_refused_at_once(train: Any, monkeypatch: Any) -> None:
    run = train("train.epochs=1")
    monkeypatch.setattr("utils.models.losses.evaluate_losses", None)  # must not be called
    with pytest.raises(UserError, match=r"--num-beams 1000000 is above 2000, the size of the model's vocabulary"):
        evaluate_run(run, dataclasses.replace(FAST, decoding=Decoding(num_beams=10**6)))


def test_merged_generation_equals_adapted_generation(train: Any) -> None:
    run = train("train.lr=3e-2")
    record = run.record()
    model, tokenizer = load_model(record["model"]), load_tokenizer(record["model"])
    base = generate(model, tokenizer, ["Input: name[A] Output:"], SHORT, 1)
    load_weights(run.best, model)
    adapted = generate(model, tokenizer, ["Input: name[A] Output:"], SHORT, 1)
    assert adapted != base
    assert generate(rosa.unwrap(model), tokenizer, ["Input: name[A] Output:"], SHORT, 1) == adapted


def test_data_that_were_moved_are_named_with_the_way_out(train: Any, small_e2e: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(small_e2e, tmp_path / "data"))
    run = train("train.epochs=1", f"dataset.path={data}")
    data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data, the dataset\.path of the run, does not exist.*--dataset-path"):
        evaluate_run(run, FAST)
    assert evaluate_run(run, dataclasses.replace(FAST, dataset_path=str(tmp_path / "moved")))[0] == "evaluated"


def test_examples_with_the_same_source_are_one_item(train: Any, small_e2e: Path, tmp_path: Path) -> None:
    run = train("train.epochs=1")
    data = tmp_path / "data"
    shutil.copytree(small_e2e, data)
    write_csv(data / "testset_w_refs.csv", [("name[A]", "A."), ("name[B]", "B."), ("name[A]", "A again.")])
    assert evaluate_runs([str(run.path)], Options(decoding=SHORT, device="cpu", dataset_path=str(data))) == 0
    assert run.references().read_text() == "A.\nA again.\n\nB.\n"
    assert run.evaluation()["predictions_sha256"] == sha256(run.predictions())
    assert Run(run.path).evaluation()["items"] == 2


def test_long_items_are_cut_or_left_out_of_the_loss_and_counted(
    train: Any, small_e2e: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run on short data with short samples."""
    run = train("train.epochs=1", "train.seq_len=60")
    rows = (small_e2e / "testset_w_refs.csv").read_text().splitlines()
    long = tmp_path / "long"
    shutil.copytree(small_e2e, long)
    items = [f"name[{'Alimentum ' * 30}],x", f"name[Zizzi],{'good ' * 100}"]
    (long / "testset_w_refs.csv").write_text("\n".join([*rows, *items]) + "\n")
    warned: list[str] = []
    monkeypatch.setattr(evaluation_module.log, "warning", lambda text, *values: warned.append(text % values))
    outcome = evaluate_run(run, dataclasses.replace(FAST, dataset_path=str(long)))
    evaluation = run.evaluation()
    assert outcome[0] == "evaluated" and evaluation is not None
    assert evaluation["data"]["left_out"] == 1 and evaluation["data"]["cut"] >= 1
    assert evaluation["predictions"] == evaluation["items"]
    said = " ".join(warned)
    assert "1 of 5 items have prompts of 60 tokens or more" in said and "the loss is on their beginnings" in said


def test_a_loss_that_is_not_finite_ends_before_anything_is_written(train: Any, monkeypatch: Any) -> None:
    run = train("train.epochs=0")
    evaluate_run(run, FAST)
    before = run.predictions().read_text(), run.eval_file.read_text()
    monkeypatch.setattr(losses, "model_losses", lambda *_: losses.Losses(None, losses.LossSum(math.nan, 1, 1)))
    with pytest.raises(UserError, match=r"the loss is not finite in fp32, and nothing was written$"):
        evaluate_run(run, dataclasses.replace(FAST, force=True))
    assert (run.predictions().read_text(), run.eval_file.read_text()) == before
