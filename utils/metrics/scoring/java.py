"""A cross-check that needs Java: METEOR, ROUGE_L and CIDEr with the official jars and COCO's own code.

The jars are those of the package pycocoevalcap. Its Python wrappers are not used, because they write into the
package's folder, which may be read-only.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.metrics.meteor15.resources import JAR, package_file
from utils.metrics.tokenizers.ptb import PUNCTUATION

TOKENIZER = "tokenizer/stanford-corenlp-3.4.1.jar"
NAMES = ("METEOR", "ROUGE_L", "CIDEr")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """METEOR, ROUGE_L and CIDEr. Raises UserError if Java is missing or fails."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    java = find_java()
    system = tokenize(java, predictions)
    lines = iter(tokenize(java, [text for group in references for text in group]))
    groups = [[next(lines) for _ in group] for group in references]
    targets = dict(enumerate(groups))
    output = {item: [line] for item, line in enumerate(system)}
    return {
        "METEOR": _meteor(java, system, groups),
        "ROUGE_L": float(Rouge().compute_score(targets, output)[0]),
        "CIDEr": float(Cider().compute_score(targets, output)[0]),
    }


def tokenize(java: str, lines: Sequence[str]) -> list[str]:
    """The official tokens of each line, lower-cased, without punctuation, joined by blanks.

    Args:
        java: path of the java program.
        lines: texts, one per line.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lines.txt"
        file.write_text("\n".join(lines), encoding="utf-8")
        command = [java, "-cp", str(package_file(TOKENIZER)), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run(
            [*command, "-preserveLines", "-lowerCase", str(file)], capture_output=True, encoding="utf-8", check=False
        )
    tokenized = done.stdout.removesuffix("\n").split("\n")
    if done.returncode or len(tokenized) < len(lines) - _empty_tail(lines):
        raise UserError(f"the Java tokenizer failed: {done.stderr.strip()[-300:]}")
    tokenized += [""] * (len(lines) - len(tokenized))
    return [" ".join(token for token in line.split(" ") if token not in PUNCTUATION) for line in tokenized]


def _empty_tail(lines: Sequence[str]) -> int:
    """The number of empty lines at the end, which the tokenizer does not print."""
    count = 0
    for line in reversed(lines):
        if line.strip():
            break
        count += 1
    return count


def _meteor(java: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    command = [java, "-Xmx2G", "-jar", str(package_file(JAR)), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout

        def ask(*fields: str) -> str:
            print(" ||| ".join(fields), file=stdin, flush=True)
            return stdout.readline().strip()

        try:
            statistics = [ask("SCORE", *group, text) for group, text in zip(references, predictions, strict=True)]
            ask("EVAL", *statistics)
            # The jar prints a line per item, of which ask has read the first, and then the score of the test set.
            for _ in statistics[1:]:
                stdout.readline()
            return float(stdout.readline())
        except (OSError, ValueError):
            raise UserError("the METEOR jar failed; it needs 2 GB of memory") from None
        finally:
            process.kill()


def find_java() -> str:
    """The path of the java program. Raises UserError if it is not on the PATH."""
    java = shutil.which("java")
    if java is None:
        raise UserError("--engine java needs Java (java on the PATH). The default engine does not.")
    return java
