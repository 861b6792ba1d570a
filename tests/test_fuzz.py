"""E2E's CSV files and ELI5's JSON lines as people, spreadsheets and scripts leave them.

Whatever the file holds, reading either gives what the format's own parser gives or stops with file and line; and the
prediction and reference files made of it have one item for each source, in order, when the scorer reads them back.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.mutations import changed, damaged
from tests.oracles import by_csv, by_json, first_bad_line
from tests.tokens.test_packing import TOKENIZER, stream_of
from utils.data import Example, group_by_source
from utils.data.e2e import E2E
from utils.data.eli5 import ELI5
from utils.data.pairs import Pairs
from utils.errors import UserError
from utils.evaluation import write_predictions
from utils.metrics.scoring.reader import read_items, read_run
from utils.runs import Run
from utils.text import one_line
from utils.tokens.encoding import encode
from utils.tokens.packing import pack

BOM = "\ufeff"
PIECES = (
    '"', '""', ",", "\n", "\r\n", "\r", "\t", " ", "\u00a0", BOM, "\u2028", "\x85", "\x0b", "\x1c", "\x7f", "|", ";",
    "'", "\\", "😀", "👩‍🍳", "é", "e\u0301", "£", "“", "ﷺ", "name[The Eagle]", "mr,ref", "mr\tref", "Input: ",
    " Output:", "<|endoftext|>", "{", "[", "null", "${x}", "=1+1", "A pub.", "\x00",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=6).map("".join)
LONG = TEXT.map(lambda text: (text or "x") * 700)
FEW = settings(deadline=None)
VALID = "".join(
    f'"name[{name}], food[{food}]","{name}, with “{food}” food."\n' for name in "ABC" for food in ("Thai", "é")
)
QUESTIONS = [{"title": f"Why {n}?", "selftext": "", "answers": {"text": [f"So é {n}.", "No."]}} for n in range(4)]
ARCHIVE = gzip.compress("".join(json.dumps(record) + "\n" for record in QUESTIONS).encode(), mtime=0)


def load(source: E2E | ELI5 | Pairs, name: str, content: bytes) -> list[Example] | str:
    """The examples of a validation file with this content, or the one message that refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return source.load("validation", Path(folder), None)
        except UserError as error:
            assert str(path) in str(error)
            if "is not UTF-8" in str(error):
                assert f"line {first_bad_line(content)} " in str(error)
            return str(error).replace(str(path), name)


# -- E2E -----------------------------------------------------------------------------------------------------


def check_e2e(content: bytes) -> None:
    """Read or refused exactly as ``by_csv`` says; refused with the line, if the header is one."""
    expected, found = by_csv(content), load(E2E(), "devset.csv", content)
    if isinstance(found, str):
        assert expected is None, found
        assert re.search(r"devset\.csv, line \d+\b|devset\.csv has (no|the) (column|records)", found), found
    else:
        assert [(item.source, item.reference) for item in found] == expected


@FEW
@given(
    st.lists(st.tuples(TEXT | LONG, TEXT | LONG), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", BOM]),
)
@example([("name[A]", "A."), ("name[B]", "B."), ("name[A]", "A too.")], csv.QUOTE_MINIMAL, "\n", "")
@example([("name[A]", "A."), ("name[B]", "\u00a0")], csv.QUOTE_ALL, "\r\n", BOM)
def test_e2e_reads_what_csv_writes(rows: list[tuple[str, str]], quoting: Any, end: str, mark: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=quoting, lineterminator=end)
    writer.writerow(("mr", "ref"))
    writer.writerows(rows)
    content = (mark + file.getvalue()).encode()
    check_e2e(content)
    # with no NUL and nothing empty the file is E2E's format, and every row must be there as it was written; but for a
    # bare \r, which csv leaves unquoted when it quotes little: it ends the line
    broken = "\0" if quoting == csv.QUOTE_ALL else "\0\r"
    if all(text.strip() and not set(text) & set(broken) for row in rows for text in row):
        found = load(E2E(), "devset.csv", content)
        assert not isinstance(found, str)
        assert [(item.source, item.reference) for item in found] == [(mr.strip(), ref.strip()) for mr, ref in rows]


@FEW
@given(damaged(f"mr,ref\n{VALID}".encode()).flatmap(lambda content: st.just(content) | damaged(content)))
def test_e2e_of_a_damaged_file(content: bytes) -> None:
    check_e2e(content)


@FEW
@given(damaged(f"prompt,target\n{VALID}".encode()))
def test_own_data_of_a_damaged_file(content: bytes) -> None:
    expected, found = by_csv(content, ("prompt", "target")), load(Pairs(), "validation.csv", content)
    if isinstance(found, str):
        assert expected is None, found
    else:
        assert [(item.source.strip(), item.reference) for item in found] == expected


# -- ELI5 ----------------------------------------------------------------------------------------------------

VALUES = TEXT | LONG | st.none() | st.integers() | st.lists(TEXT, max_size=2) | st.just("\ud83d")
ANSWERS = st.lists(TEXT, min_size=1, max_size=3)
RECORDS = st.one_of(
    st.builds(lambda title, answers: {"title": title, "answers": {"text": answers}}, TEXT, ANSWERS),
    st.builds(lambda title, more, a: {"title": title, "selftext": more, "answers.text": a}, TEXT, TEXT | LONG, ANSWERS),
    st.builds(lambda question, answer: {"question": question, "answer": answer}, TEXT, TEXT | LONG),
    st.dictionaries(st.sampled_from(["title", "selftext", "answers", "answers.text", "question", "answer"]), VALUES),
)


def check_eli5(content: bytes) -> None:
    """Read as ``by_json`` says, or refused with the very line."""
    expected, found = by_json(content), load(ELI5(), "validation.jsonl", content)
    if isinstance(found, str):
        assert expected is None or isinstance(expected, int), found
        where = "validation.jsonl has no records" if expected is None else "validation.jsonl, line "
        assert found.startswith(where), found
        if expected is not None and "UTF-8" not in found:  # a file's encoding is looked at before its records
            assert found.startswith(f"{where}{expected}"), (expected, found)
    else:
        assert [(item.source, item.reference) for item in found] == expected


@FEW
@given(
    st.lists(RECORDS, max_size=5), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]), st.sampled_from(["", BOM])
)
@example([{"title": "a", "answers.text": ["b"]}, {"title": "c"}], True, "\n", "")
def test_eli5_reads_what_json_writes(records: list[Any], ascii_only: bool, end: str, mark: str) -> None:
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    check_eli5((mark + "".join(line + end for line in lines)).encode("utf-8", errors="surrogatepass"))


@FEW
@given(damaged(gzip.decompress(ARCHIVE)))
@example(gzip.decompress(ARCHIVE).replace(b'"Why 2?"', b'"Why 2?", "title": "?"'))
@example(gzip.decompress(ARCHIVE).replace(b'"selftext": ""', b'"more": [{"text": 1, "text": 2}]', 1))
def test_eli5_of_a_damaged_file(content: bytes) -> None:
    check_eli5(content)


@FEW
@given(damaged(ARCHIVE))
def test_eli5_of_a_damaged_archive(content: bytes) -> None:
    found = load(ELI5(), "validation.jsonl.gz", content)
    assert isinstance(found, str) or [(item.source, item.reference) for item in found] == by_json(
        gzip.decompress(content)
    )


# -- what is made of it --------------------------------------------------------------------------------------


@FEW
@given(st.data())
def test_predictions_are_as_many_as_sources_and_in_their_order(data: Any) -> None:
    """Duplicated sources anywhere in E2E's file: through the files that eval.py writes and the scorer reads."""
    texts = TEXT.filter(lambda text: text.strip() and "\0" not in text)
    sources = data.draw(st.lists(texts, min_size=1, max_size=4))
    rows = data.draw(st.lists(st.tuples(st.sampled_from(sources), texts), min_size=1, max_size=8))
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("mr", "ref"), *rows])
    examples = load(E2E(), "devset.csv", file.getvalue().encode())
    assert not isinstance(examples, str)
    groups = group_by_source(examples)
    expected: dict[str, list[str]] = {}
    for source, reference in rows:
        expected.setdefault(source.strip(), []).append(one_line(reference.strip()))
    predictions = data.draw(st.lists(TEXT, min_size=len(groups), max_size=len(groups)))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        write_predictions(run, "test", groups, [group[0].prompt for group in groups], predictions)
        items = read_items(run.predictions(), run.references(), tables=False)
        raw = read_run(run, "test")
    assert raw.sources == list(expected)
    assert (raw.predictions, raw.references) == (items.predictions, items.references)
    assert items.predictions == [one_line(text) for text in predictions]
    assert items.references == list(expected.values())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXT | LONG, TEXT | LONG), min_size=1, max_size=4), st.integers(24, 200))
def test_any_text_becomes_tokens_or_is_refused(rows: list[tuple[str, str]], seq_len: int) -> None:
    """No sample is longer than asked and none is lost; a source that leaves no room is named with file and line."""
    lines = [json.dumps({"question": f"q{mr}", "answer": f"a{ref}"}) for mr, ref in rows]
    examples = load(ELI5(), "validation.jsonl", "".join(f"{line}\n" for line in lines).encode())
    assert not isinstance(examples, str)
    prompts = [len(TOKENIZER(item.prompt, add_special_tokens=False)["input_ids"]) for item in examples]
    fitting = next((number for number, count in enumerate(prompts, 1) if count >= seq_len), None)
    if fitting is None:
        samples = encode(examples, TOKENIZER, seq_len).samples
        assert len(samples) == len(rows)
        assert all(count < len(s.ids) <= seq_len for s, count in zip(samples, prompts, strict=True))
    else:
        with pytest.raises(UserError, match=rf"validation\.jsonl, line {fitting}\b.*seq_len={seq_len}"):
            encode(examples, TOKENIZER, seq_len)
    groups = group_by_source(examples)
    assert sum(len(s.ids) - 1 for s in pack(groups, TOKENIZER, 32).samples) == len(stream_of(groups)) - 1


def test_damage_is_damage() -> None:
    content, document, counts = ('mr,ref\n"name[A]","A é."\n' * 5).encode(), {"a": [1, {"b": None}], "c": "x"}, [0, 0]

    @settings(FEW, max_examples=100, derandomize=True)
    @given(st.data())
    def test(data: Any) -> None:
        counts[0] += data.draw(damaged(content)) != content
        counts[1] += data.draw(changed(document)) != document

    test()
    assert min(counts) > 75, counts  # a swap of equal lines is no damage
    assert document == {"a": [1, {"b": None}], "c": "x"}
