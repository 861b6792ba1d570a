"""ELI5 (Fan et al. 2019): questions asked on r/explainlikeimfive and their answers, as plain language modelling."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from utils.data import SPLITS, DataSource, Example, folded, register
from utils.errors import UserError
from utils.io import hub
from utils.io.rows import SUFFIXES, check_characters, find_split, read_csv, read_json_lines
from utils.log import log

STEMS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}
FILES = {split: tuple(f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES) for split, stems in STEMS.items()}
SUBSTITUTE = "sentence-transformers/eli5"
BUCKETS = {"validation": range(0, 1), "test": range(1, 2), "train": range(2, 100)}  # see ``bucket``

Thread = tuple[str, list[str], str]  # question, answers, file and line


@register
class ELI5(DataSource):
    """A folder with ``train``, ``validation`` and ``test`` files, or a substitute from the hub.

    JSON lines (.jsonl, .jsonl.gz) have ``title``, optionally ``selftext``, and ``answers.text``: a field of that
    name or ``{"answers": {"text": [...]}}``. JSON lines and CSV may have ``question`` and ``answer`` instead.
    A question is the title and the selftext joined by a blank. Each answer is one example.
    """

    names = ("eli5",)
    loss_on = "all"
    packed = True
    metrics = ("ROUGE_L", "distinct_1", "distinct_2", "length_ratio")  # n-gram matches do not measure free answers
    generate_limit = 100  # answers are long: a thousand of them with ten beams take hours

    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        """See DataSource.load. A question is in one split only: a local split leaves out questions of earlier splits.

        The order is train, validation, test, so that training never reads the test file.
        """
        threads = _from_hub(split, cache) if path is None else _from_folder(split, path)
        return [
            Example(question, question, f" {answer}", answer, where)
            for question, answers, where in threads
            for answer in answers
        ]


def _from_folder(split: str, folder: Path) -> list[Thread]:
    threads = _read(find_split(folder, FILES[split]))
    seen: set[str] = set()
    for earlier in SPLITS[: SPLITS.index(split)]:
        if any((folder / name).is_file() for name in FILES[earlier]):
            seen |= {folded(question) for question, *_ in _read(find_split(folder, FILES[earlier]))}
        elif earlier == "train":
            log.warning("%s has no %s file: its questions cannot be left out of %s", folder, earlier, split)
    kept = [thread for thread in threads if folded(thread[0]) not in seen]
    if len(kept) < len(threads):
        log.warning("%d %s questions are left out: an earlier split has them", len(threads) - len(kept), split)
    if not kept:
        raise UserError(f"dataset.path={folder}: every {split} question is in an earlier split too")
    return kept


def _from_hub(split: str, cache: str | None) -> list[Thread]:
    rows = hub.load_split(SUBSTITUTE, "train", cache, config="pair")
    threads = [
        (question.strip(), [answer.strip()], "")
        for question, answer in zip(rows["question"][:], rows["answer"][:], strict=True)
        if bucket(question) in BUCKETS[split] and question.strip() and answer.strip()
    ]
    log.warning(
        "the original ELI5 is withdrawn from the hub: using its substitute %s. It has no splits; a hash of the "
        "question assigns %d of its %d pairs to %s",
        SUBSTITUTE, len(threads), len(rows["question"]), split,
    )  # fmt: skip
    if not threads:
        raise UserError(f"the hub data set {SUBSTITUTE} has no {split} questions: set dataset.path to a local folder")
    return threads


def bucket(question: str) -> int:
    """A number from 0 to 99 from a hash of the question's text. BUCKETS maps it to a split."""
    return int(hashlib.sha256(folded(question).encode()).hexdigest(), 16) % 100


def _read(file: Path) -> list[Thread]:
    records = read_csv(file, ("question", "answer")) if file.suffix == ".csv" else read_json_lines(file)
    threads = [_thread(where, record) for where, record in records]
    if not threads:
        raise UserError(f"{file} has no records")
    return threads


def _thread(where: str, record: dict[str, Any]) -> Thread:
    if "title" not in record:
        if "question" not in record:
            found = ", ".join(record) or "none"
            raise UserError(f"{where} has neither title and answers.text nor question and answer; its fields: {found}")
        question = _text(where, "question", record["question"])
        return question, [_text(where, "answer", record.get("answer"))], where
    question = _text(where, "title", record["title"])
    if record.get("selftext"):
        question = f"{question} {_text(where, 'selftext', record['selftext'], blank=True)}".strip()
    nested = record.get("answers")
    answers = record.get("answers.text", nested.get("text") if isinstance(nested, dict) else None)
    if not isinstance(answers, list) or not answers:
        raise UserError(f"{where}: answers.text is not a list with at least one text")
    return question, [_text(where, f"answers.text[{i}]", answer) for i, answer in enumerate(answers)], where


def _text(where: str, name: str, value: Any, *, blank: bool = False) -> str:
    if not isinstance(value, str) or not (blank or value.strip()):
        raise UserError(f"{where}: {name} is missing, empty or not a text")
    check_characters(where, name, value)
    return value.strip()
