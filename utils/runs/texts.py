"""The texts of an evaluation: JSON lines with everything, and two line files for people and other tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from utils.errors import UserError
from utils.io.files import read_bytes, write_text
from utils.io.rows import read_json_lines
from utils.runs.run import Run
from utils.text import one_line


@dataclass(frozen=True)
class Answer:
    """One item of an evaluation: its source, the model's prompt and prediction, and references by people."""

    source: str
    prompt: str
    prediction: str
    references: list[str]


def write_texts(run: Run, split: str, answers: Sequence[Answer]) -> None:
    """Write the three files: raw texts as JSON lines, predictions one per line, references in groups separated by
    empty lines."""
    lines = (json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
    write_text(run.raw_predictions(split), "".join(lines))
    write_text(run.references(split), _reference_lines(answers))
    write_text(run.predictions(split), _prediction_lines(answers))


def read_texts(run: Run, split: str) -> list[Answer]:
    """The answers in the JSON lines. The line files must have the same texts, because people read those.

    Raises:
        UserError: a file is missing or damaged, or a line file was changed.
    """
    raw = run.raw_predictions(split)
    answers = [_answer(where, fields) for where, fields in read_json_lines(raw)]
    expected = {run.predictions(split): _prediction_lines(answers), run.references(split): _reference_lines(answers)}
    for path, text in expected.items():
        try:
            found = read_bytes(path)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist. Run eval.py again.") from None
        if found != text.encode("utf-8", "surrogatepass"):
            raise UserError(f"{path} and {raw.name} hold different texts. Run eval.py again, which writes both.")
    return answers


def _answer(where: str, fields: dict[str, object]) -> Answer:
    references = fields.get("references")
    texts = [fields.get(name) for name in ("source", "prompt", "prediction")]
    if not isinstance(references, list) or not all(isinstance(text, str) for text in [*texts, *references]):
        raise UserError(f"{where} lacks source, prompt, prediction or references. Run eval.py again.")
    if not references or not all(map(one_line, references)):
        raise UserError(f"{where}: a reference is empty, or there is none")
    source, prompt, prediction = map(str, texts)
    return Answer(source, prompt, prediction, references)


def _prediction_lines(answers: Iterable[Answer]) -> str:
    return "".join(f"{one_line(answer.prediction)}\n" for answer in answers)


def _reference_lines(answers: Iterable[Answer]) -> str:
    return "\n".join("".join(f"{one_line(text)}\n" for text in answer.references) for answer in answers)
