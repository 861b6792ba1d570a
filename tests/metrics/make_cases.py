"""Make the stored cases in ``cases/`` with the official jars: ``python -m tests.metrics.make_cases`` (needs Java).

The sentences are this project's own (``cases/parts.txt`` and ``cases/odd.txt``). The cases have the output of the jars,
so that the tests need no Java.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.metrics.meteor15.resources import JAR, package_file
from utils.metrics.scoring import java

CASES = Path(__file__).parent / "cases"
NAMES = ["The Copper Kettle", "Café Lumière", "Dr. Whisk", "St. Aldate's Inn", "O'Malley's", "B&B Garden", "No. 5"]
PARTS = (CASES / "parts.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
ODD = (CASES / "odd.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")  # one or two rules per line
PAIRS = [
    ("The kids friendly pub is near the river.", ["A pub close to the river welcomes children.", "It is a pub."]),
    ("Cats sat on the mat quickly", ["A cat was sitting fast on the rug"]),
    ("It is in the vicinity of the bridge", ["It is near the bridge", "It lies near a bridge"]),
    ("big dog", ["large dog"]),
    ("big", ["large"]),
    ("", ["An empty text has nothing to match.", "Nothing."]),
    ("the", ["the"]),
    ("the the the the", ["the cat the dog"]),
    ("dogs cats birds houses", ["dog cat bird house"]),
    ("it is it is it is", ["is it is it is it"]),
    ("serving cheap food , it serves food cheaply", ["it serves cheap food and serves it cheaply"]),
    ("price range is high", ["it is highly priced", "the prices range from high to higher"]),
    ("how do they do it", ["how does it do what they do", "they do how"]),
    ("a place that is located in the centre of the city", ["a city centre place", "placed in the middle of town"]),
    ("rated five out of five by its customers", ["customers rate it 5 out of 5", "it has a customer rating of five"]),
]


def sentences() -> list[str]:
    """Awkward sentences of several parts. Every call returns the same ones."""
    rng = random.Random(2019)
    texts = [f"{rng.choice(NAMES)} {part}" for part in PARTS]
    texts += [f"{rng.choice(NAMES)} {rng.choice(PARTS)} and {rng.choice(PARTS)}." for _ in range(200)]
    texts += [f"{rng.choice(PARTS)}, {rng.choice(NAMES)}; {rng.choice(PARTS)}" for _ in range(100)]
    return texts


def pairs() -> Iterator[tuple[str, list[str]]]:
    """Predictions with references: PAIRS, and awkward sentences with shuffled and other ones as references."""
    yield from PAIRS
    rng = random.Random(2014)
    texts = sentences()
    for text in rng.sample(texts, 120):
        words = text.split()
        rng.shuffle(words)
        yield text, [" ".join(words), rng.choice(texts), f"{rng.choice(NAMES)} {rng.choice(PARTS)}"]


def repetitive_pairs() -> list[tuple[str, str]]:
    """Texts of few words with many possible matches, for which the result depends on the order of METEOR's search."""
    rng = random.Random(1966)
    words = ["qa", "qb", "qc", "dog", "dogs", "cheap", "cheaply", "inexpensive", "the", "price range", "prices"]
    texts = []
    for _ in range(400):
        chosen = rng.sample(words, rng.randint(1, 5))
        first, second = (
            " ".join(rng.choice([*chosen, filler]) for _ in range(rng.randint(1, 9))) for filler in ("z", "y")
        )
        texts.append((first, second))
    return sorted(set(texts))


def alignments(cases: Sequence[tuple[str, str]]) -> list[list[list[int]]]:
    """The METEOR jar's alignments. A match is start and length in each text, and the matcher."""
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in zip(("hypotheses", "references"), zip(*cases, strict=True), strict=True):
            (Path(folder) / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        command = ["java", "-Xmx2G", "-jar", str(package_file(JAR)), "hypotheses", "references", "-l", "en", "-norm"]
        subprocess.run([*command, "-writeAlignments", "-f", "out"], cwd=folder, capture_output=True, check=True)
        output = (Path(folder) / "out-align.out").read_text(encoding="utf-8")
    aligned = []
    for block in output.split("Alignment\t")[1:]:
        rows = [[field for field in line.split("\t") if field] for line in block.split("\n")[4:] if line]
        aligned.append(
            [[*map(int, own.split(":")), *map(int, other.split(":")), int(matcher)] for other, own, matcher, _ in rows]
        )
    return aligned


def meteor_lines(requests: Sequence[str]) -> list[str]:
    """The METEOR jar's answers to lines of its own protocol."""
    command = ["java", "-Xmx2G", "-jar", str(package_file(JAR)), "-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run(command, input="\n".join(requests) + "\n", capture_output=True, encoding="utf-8", check=True)
    return done.stdout.splitlines()


def main() -> None:
    """Write ``tokens.json``, ``meteor.json`` and ``alignments.json``."""
    program = java.find_java()
    texts = sentences() + [f"It is {part}" for part in ODD]
    write("tokens.json", [list(pair) for pair in zip(texts, java.tokenize(program, texts), strict=True)])
    cases = list(pairs())
    predictions = java.tokenize(program, [text for text, _ in cases])
    groups = [java.tokenize(program, group) for _, group in cases]
    requests = [" ||| ".join(["SCORE", *group, text]) for group, text in zip(groups, predictions, strict=True)]
    statistics = [[float(value) for value in line.split()] for line in meteor_lines(requests)]
    scores = java.score([text for text, _ in cases], [group for _, group in cases])
    write("meteor.json", {"pairs": cases, "statistics": statistics, "scores": scores})
    repetitive = repetitive_pairs()
    aligned = alignments(repetitive)
    write("alignments.json", [[*pair, matches] for pair, matches in zip(repetitive, aligned, strict=True)])


def dump(value: object) -> str:
    """JSON with one line per entry of a list, so that a changed case changes one line."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {dump(part)}" for key, part in value.items()) + "\n}"
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n]"


def write(name: str, value: object) -> None:
    (CASES / name).write_text(dump(value) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
