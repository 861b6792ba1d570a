"""The five scores against the official scorer: small stored cases, and outputs of real systems."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import data_folder
from utils.errors import UserError
from utils.metrics import OFFICIAL, Scorer, score
from utils.metrics.meteor import METEOR
from utils.metrics.meteor15.counts import CHUNKS, LENGTH, MATCHED
from utils.metrics.meteor15.normalize import normalize
from utils.metrics.scoring.reader import read_items, read_references
from utils.metrics.tokenizers.ptb import tokenize_lines

CASES = Path(__file__).parent / "cases"
SYSTEMS = ("tgen", "slug", "adapt", "zhang", "tr2", "tuda")
EDGE = ("empty_mid", "none_one", "crlf", "bom", "nbsp_one", "unicode", "all_empty")


@cache
def stored(name: str) -> Any:
    return json.loads((CASES / name).read_text(encoding="utf-8"))


def test_tokens_are_those_of_the_official_tokenizer() -> None:
    cases = stored("tokens.json")
    assert len(cases) > 400
    ours = tokenize_lines([text for text, _ in cases])
    assert [[text, line] for (text, _), line in zip(cases, ours, strict=True)] == cases


def test_meteor_statistics_and_scores_are_those_of_the_jars() -> None:
    cases = stored("meteor.json")
    predictions = [text for text, _ in cases["pairs"]]
    references = [group for _, group in cases["pairs"]]
    expected = np.array(cases["statistics"])
    whole = (expected[:, CHUNKS] == 1) & (expected[:, MATCHED] == expected[:, LENGTH])
    whole &= expected[:, MATCHED + 1] == expected[:, LENGTH + 1]
    expected[whole, CHUNKS] = 0  # the jar prints 1, but counts 0 when it computes the score
    found = METEOR(references).statistics(predictions)
    differs = [text for text, ours, jar in zip(predictions, found, expected, strict=True) if (ours != jar).any()]
    assert differs == []
    scores = score(predictions, references, names=list(cases["scores"]))
    assert scores == pytest.approx(cases["scores"], abs=1e-10)


MARKUP_PREDICTIONS = [
    "The Eagle is a cheap pub near the river .",
    "A family friendly {} shop in the city centre, it is called Zizzi.",
    "Cotto serves Thai food for less than £20.",
]
MARKUP_REFERENCES = [
    ["The Eagle is a cheap pub by the river.", "The Eagle: cheap and near the river."],
    ["Zizzi is a family friendly {} shop in the city centre."],
    ["Cotto serves cheap Thai food, under £20.", "Thai food is at Cotto.", "Cotto has food for less than £20."],
]


@pytest.mark.parametrize("case", stored("markup.json"), ids=lambda case: f"{case['in']}-{case['text']}")
def test_texts_with_sgml_tags_and_entities(case: dict[str, Any]) -> None:
    """Scores of mteval-v13a.pl, with more digits, for the files that the official scorer writes without escaping.

    ``refused`` means that the script failed or printed no score.
    """

    def fill(text: str, kind: str) -> str:
        return text.format(f"nice {case['text']} coffee" if case["in"] == kind else "coffee")

    predictions = [fill(text, "prediction") for text in MARKUP_PREDICTIONS]
    references = [[fill(text, "reference") for text in group] for group in MARKUP_REFERENCES]
    if case.get("refused"):
        for name in ("BLEU", "NIST"):
            with pytest.raises(UserError, match=rf"the {case['in']} of item 2 has '</.*Write &lt; for <"):
                score(predictions, references, names=[name])
    else:
        expected = {name: case[name] for name in ("BLEU", "NIST")}
        assert score(predictions, references, names=list(expected)) == pytest.approx(expected, abs=1e-9)


def test_only_bleu_and_nist_read_a_tag_as_the_end_of_a_text() -> None:
    references, names = [["The Eagle is a cheap pub by the river."]], ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
    cut, more = (score([f"The Eagle is a cheap{end}"], references) for end in ("", "</seg> pub by the river."))
    assert [cut[name] == more[name] for name in names] == [True, True, False, False, True]  # CIDEr of one item is 0
    with pytest.raises(UserError, match=r"the reference of item 1 has '</seg>'"):
        score(["A pub."], [["</seg> A pub."]])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the cat 's mat", "the cat ' s mat"),
        ("family-friendly", "family friendly"),
        ("a-b-c", "a b-c"),
        ("u.s. food", "us food"),
        ("u.s.-based", "us based"),
        ("# 20-25", "# 20 25"),
        ("5/5 stars", "5 / 5 stars"),
        ("st. x", "st. x"),
        ("st. 5", "st . 5"),
        ("v. 5", "v. 5"),
        ("o'clock", "o 'clock"),
        ("1,000 a,b", "1,000 a , b"),
        ("10:30", "10 : 30"),
        ("foo_bar", "foo _ bar"),
        ("-lrb- x -rrb-", "-lrb- x -rrb-"),
        ("3\u00a01/2", "3 1 / 2"),
        ("wait ... now", "wait ... now"),
        ("éa-ö ºx", "éa ö º x"),
        ("z ,-, ,,st", "z , -, , ,st"),
        ("z '5' '90s", "z ' 5' ' 90s"),
        ("pp. 5 pp. x pp. é", "pp. 5 pp. x pp . é"),
        ("st'b't", "st 'b't"),
        ("b..--a b.--a l,--,.. d", "b .. -a b. a l , - , .. d"),
    ],
)
def test_normalization_is_that_of_the_meteor_jar(text: str, tokens: str) -> None:
    assert normalize(text, {"v", "vs", "e.g", "i.e", "rev", "pp #NUMERIC_ONLY#"}) == tokens.split()


@cache
def scorer(references: Path) -> Scorer:
    return Scorer(read_references(references)[0])


def expected_scores(folder: Path, key: str, name: str) -> tuple[dict[str, str], Path]:
    with (folder / "scores.tsv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file, delimiter="\t") if row[key] == name)
    return row, folder / row["references"]


def check_system(name: str) -> None:
    folder = data_folder("SCORES_DIR")
    row, references = expected_scores(folder, "id", name)
    items = read_items(folder / f"{name}.txt", references)
    found = scorer(references).score(items.predictions)
    assert found == pytest.approx({metric: float(row[metric]) for metric in OFFICIAL}, abs=1e-6)


def test_a_real_system_on_ten_items() -> None:
    check_system("example__devel10")


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_real_systems(system: str) -> None:
    check_system(f"primary__{system}")


@pytest.mark.parametrize("name", EDGE)
def test_awkward_inputs(name: str) -> None:
    folder = data_folder("SCORES_DIR") / "edge"
    row, references = expected_scores(folder, "file", f"{name}.txt")
    found = scorer(references).score(read_items(folder / f"{name}.txt", references).predictions)
    assert found == pytest.approx({metric: float(row[metric]) for metric in OFFICIAL}, abs=5e-5)


def test_a_table_in_another_order() -> None:
    folder = data_folder("SCORES_DIR") / "edge"
    row, references = expected_scores(folder, "file", "sys_shuffled.tsv")
    items = read_items(folder / "sys_shuffled.tsv", references)
    assert score(items.predictions, items.references) == pytest.approx(
        {metric: float(row[metric]) for metric in OFFICIAL}, abs=5e-5
    )


def test_a_file_with_too_few_predictions_is_refused_as_by_the_official_scorer() -> None:
    folder = data_folder("SCORES_DIR") / "edge"
    row, references = expected_scores(folder, "file", "short9.txt")
    assert row["BLEU"] == "refused"
    with pytest.raises(UserError, match=r"9 predictions.*10 groups.*group 10"):
        read_items(folder / "short9.txt", references)
