"""ELI5: reading files, disjoint splits, and a run from training to the table."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, data_folder, make_config
from tests.tokens.test_packing import TOKENIZER, document, stream_of
from utils.data import SPLITS, get_source, group_by_source, training_units
from utils.data.eli5 import ELI5, bucket
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.generation.decoding import Decoding
from utils.models.loading import load_model
from utils.runs import Run
from utils.tables import compile_results
from utils.tokens.packing import pack
from utils.training.data import load_training_data

RECORD = {"title": "Why is the sky blue?", "selftext": "", "answers": {"text": ["Air.", "It is not."], "score": [2, 1]}}


def write_split(folder: Path, split: str, *records: Any) -> Path:
    """Write ``records`` as JSON lines. A record that is a text is written unchanged."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        {"title": " Why is the sky blue? ", "answers.text": ["Air.", " It is not.\n"]},
        {"title": "Why is the", "selftext": " sky blue? ", "answers": {"text": ["Air.", "It is not."]}},
    ],
)
def test_layouts_of_a_record(tmp_path: Path, record: dict[str, Any]) -> None:
    write_split(tmp_path, "train", record)
    assert ELI5().load("train", tmp_path, None) == document("Why is the sky blue?", "Air.", "It is not.")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "jsonl.gz"])
def test_question_and_answer_columns_in_each_file_format(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "Why?", "answer": "So, then."}, {"question": "How?", "answer": "Like\nthis."}]
    if suffix == "csv":
        with (tmp_path / "dev.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"dev.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    expected = document("Why?", "So, then.") + document("How?", "Like\nthis.")
    assert ELI5().load("validation", tmp_path, None) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"text": "x"}, "line 2 has neither title and answers.text nor question and answer; its fields: text"),
        ({"title": "Why?"}, "line 2: answers.text is not a list"),
        ({"title": "Why?", "answers": {"text": []}}, "line 2: answers.text is not a list with at least one"),
        ({"title": "Why?", "answers": {"text": "Air."}}, "line 2: answers.text is not a list"),
        ({"title": "Why?", "answers": {"text": ["a", " "]}}, r"line 2: answers.text\[1\] is missing, empty"),
        ({"title": " ", "answers": {"text": ["a"]}}, "line 2: title is missing, empty"),
        ({"title": "Why?", "selftext": True, "answers": {"text": ["a"]}}, "line 2: selftext is missing, empty or not"),
        ({"question": "Why?"}, "line 2: answer is missing"),
        ({"title": "\ud83d", "answers": {"text": ["a"]}}, "line 2: title has half a surrogate pair"),
    ],
)
def test_bad_records_are_named_with_their_line(tmp_path: Path, record: Any, message: str) -> None:
    write_split(tmp_path, "train", RECORD, record)
    with pytest.raises(UserError, match=rf"train\.jsonl, {message}"):
        ELI5().load("train", tmp_path, None)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of train\.csv, train\.jsonl, train\.jsonl\.gz"):
        ELI5().load("train", tmp_path, None)
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no records"):
        ELI5().load("train", tmp_path, None)


# -- splits --------------------------------------------------------------------------------------------------


def thread(question: str) -> dict[str, Any]:
    return {"title": question, "answers": {"text": [f"To {question}"]}}


def questions(split: str, folder: Path | None) -> list[str]:
    return [group[0].source for group in group_by_source(ELI5().load(split, folder, None))]


def test_local_splits_share_no_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_split(tmp_path, "train", thread("A?"), thread("B?"), thread("B?"))
    write_split(tmp_path, "validation", thread("C?"), thread("b?"))
    write_split(tmp_path, "test", thread(" a? "), thread("D?"), thread("C?"), thread("E?"))
    assert [questions(split, tmp_path) for split in SPLITS] == [["A?", "B?"], ["C?"], ["D?", "E?"]]
    assert "2 test questions are left out" in caplog.text
    alone = tmp_path / "alone"
    alone.mkdir()
    write_split(alone, "test", thread("A?"))
    assert questions("test", alone) == ["A?"] and f"{alone} has no train file" in caplog.text
    write_split(tmp_path, "test", thread("A?"))
    with pytest.raises(UserError, match="every test question is in an earlier split"):
        questions("test", tmp_path)


def test_hub_splits_are_a_fixed_partition_by_question(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"question": [f"Why {i // 2}?" for i in range(4000)], "answer": [f"So {i}." for i in range(4000)]}
    asked: list[Any] = []

    def load_split(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return hub

    import datasets

    hub = datasets.Dataset.from_dict(rows)
    monkeypatch.setattr("utils.io.hub.load_split", load_split)
    parts = {split: ELI5().load(split, None, "cache") for split in SPLITS}
    assert asked == [(("sentence-transformers/eli5", "train", "cache"), {"config": "pair"})] * 3
    assert "the original ELI5 is withdrawn" in caplog.text and "sentence-transformers/eli5" in caplog.text
    found = [example.reference for split in SPLITS for example in parts[split]]
    assert sorted(found) == sorted(rows["answer"])
    sources = {split: {example.source for example in parts[split]} for split in SPLITS}
    assert (
        not sources["train"] & sources["validation"]
        and not (sources["train"] | sources["validation"]) & (sources["test"])
    )
    assert 5 <= len(sources["validation"]) <= 40 and 5 <= len(sources["test"]) <= 40  # 20 expected of 2,000
    # The split of a question must never change. 24 is the SHA-256 of "why is the sky blue?" modulo 100.
    assert bucket("Why is the  sky BLUE?") == bucket("why is the sky blue?") == 24


def test_without_network_the_error_gives_two_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_arguments: object, **_options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"(?s)sentence-transformers/eli5.*dataset\.path.*e2e_sample"):
        ELI5().load("train", None, str(tmp_path))


def test_the_real_data() -> None:
    folder = data_folder("ELI5_DIR")
    kept = {split: questions(split, folder) for split in SPLITS}
    assert {split: len(found) for split, found in kept.items()} == {"train": 5406, "validation": 1199, "test": 1173}
    train, validation, test = ({" ".join(q.casefold().split()) for q in found} for found in kept.values())
    assert train.isdisjoint(validation | test) and validation.isdisjoint(test)


# -- from training to a table --------------------------------------------------------------------------------

WORDS = ("river", "hotel", "city", "film", "car", "garden", "music", "price")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20, 7 and 7 questions in train, validation and test. The first of each has more tokens than the model takes."""
    path = tmp_path / "eli5"
    path.mkdir()
    for split, count in (("train", 20), ("validation", 7), ("test", 7)):
        records = [
            {
                "title": f"Why is the {WORDS[i % 8]} {split} {i}?",
                "selftext": "I asked and nobody could say. " * 60 if i == 0 else "",
                "answers": {"text": [f"The {WORDS[j]} is near.\nSee {i}." for j in range(1 + i % 3)]},
            }
            for i in range(count)
        ]
        write_split(path, split, *records)
    return path


@pytest.fixture
def eli5(train: Callable[..., Run], folder: Path) -> Callable[..., Run]:
    def run(*overrides: str) -> Run:
        return train("dataset.name=eli5", f"dataset.path={folder}", "train.block_size=32", "train.epochs=1", *overrides)

    return run


def test_train_evaluate_and_tabulate(
    eli5: Callable[..., Run],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ELI5, "generate_limit", 3)
    run = eli5("logging.samples=2", "fnmodel.name=rosa")
    record = run.record()
    assert run.path.parent.name == "eli5" and record["loss_on"] == "all"
    assert record["data"]["train"]["documents"] == 20 and record["data"]["train"]["longest"] == 32
    assert run.log_file.read_text().count("sample: ") == 4  # one of the questions has 60 sentences
    assert not [name for name in run.metrics("validation")[0] if "target" in name]

    options = Options(decoding=Decoding(num_beams=2, max_new_tokens=8), device="cpu", batch_size=4)
    caplog.clear()
    assert evaluate_run(run, options)[1].startswith("7 items (3 with texts), loss")
    assert "1 of 3 questions are cut at the beginning to fit the model" in caplog.text
    found = run.evaluation()
    assert found is not None
    assert (found["limit"], found["items"], found["predictions"]) == (None, 7, 3)
    assert evaluate_run(run, options)[0] == "current"
    assert not [name for name in found if "target" in name]
    expected = whole_test_loss(run, folder)
    assert found["loss"] == pytest.approx(expected, abs=1e-4)

    raw = [json.loads(line) for line in run.raw_predictions().read_text().splitlines()]
    assert [item["references"] for item in raw] == [
        [f"The {WORDS[j]} is near.\nSee {i}." for j in range(1 + i)] for i in range(3)
    ]
    assert raw[0]["source"].endswith(raw[0]["prompt"]) and len(raw[0]["prompt"]) < len(raw[0]["source"])
    assert 200 < len(TOKENIZER(raw[0]["prompt"])["input_ids"]) <= 256 - 8
    assert raw[1]["prompt"] == raw[1]["source"] == "Why is the hotel test 1?"
    assert len(run.predictions().read_text().splitlines()) == 3
    groups = run.references().read_text().split("\n\n")
    assert [group.strip().count("\n") + 1 for group in groups] == [1, 2, 3]

    compile_results([tmp_path / "runs"], formats=["csv"])
    (row,) = csv.DictReader((tmp_path / "runs" / "eli5" / "results.csv").open())
    assert float(row["test_perplexity_mean"]) == pytest.approx(found["perplexity"])
    assert float(row["val_loss_mean"]) == pytest.approx(record["best"]["loss"])
    assert float(row["test_bits_per_char_all_mean"]) == pytest.approx(found["bits_per_char_all"])

    limited = Options(limit=5, decoding=options.decoding, device="cpu", force=True)  # it replaces a complete one
    assert evaluate_run(run, limited)[0] == "evaluated"
    again = run.evaluation()
    assert again is not None and (again["limit"], again["items"], again["predictions"]) == (5, 5, 5)
    assert abs(again["loss"] - expected) > 1e-6


def whole_test_loss(run: Run, folder: Path) -> float:
    """The mean loss of the best checkpoint on the whole test split, from the model's own forward."""
    import rosa
    from utils.runs.checkpoint_folder import load_weights

    model = load_model(run.record()["model"])
    load_weights(run.best, model)
    model = rosa.unwrap(model).eval()
    stream = stream_of(group_by_source(ELI5().load("test", folder, None)))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(stream) - 1, 31):
            block = torch.tensor([stream[start : start + 32]])
            nats += model(input_ids=block, labels=block).loss.item() * (block.shape[1] - 1)
    return nats / (len(stream) - 1)


def test_fraction_takes_whole_documents(small_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(units: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(units)
        return pack(units, TOKENIZER, 32)

    monkeypatch.setattr("utils.training.data.encode_units", spy)
    config = make_config("dataset.name=eli5", f"dataset.path={folder}", "train.fraction=0.35")
    load_training_data(config, TOKENIZER)
    whole = training_units(get_source("eli5"), ELI5().load("train", folder, None))
    train, validation = seen
    assert len(train) == 7 and len(validation) == 7
    assert all(unit in whole for unit in train)
    assert any(len(unit) == 3 for unit in train)


def test_settings_that_packed_data_cannot_use_are_refused(eli5: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"train\.loss_on=target: eli5 has no targets"):
        make_config("dataset.name=eli5", "train.loss_on=target")
    with pytest.raises(UserError, match=r"takes 256: set train\.block_size=256"):
        eli5("train.block_size=300")


@pytest.mark.parametrize("method", ["none", "lora", "rosa"])
def test_the_configuration_of_the_published_runs_composes(method: str) -> None:
    assert (ROOT / "configs" / "experiment" / "eli5.yaml").is_file()
    config = make_config("experiment=eli5", f"fnmodel.name={method}")
    assert config.dataset.name == "eli5" and config.fnmodel.name == method
