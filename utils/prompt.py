"""What a run's model writes for texts of one's own.

    python -m utils.prompt RUN "name[Blue Spice], eatType[coffee shop]"
    python -m utils.prompt RUN < texts.txt

A text is put into the prompt of the run's data set, as in its training. Standard output has one line per text, in which
line breaks are blanks, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, printable, run_cli
from utils.generation.decoding import Decoding, add_arguments, take_decoding


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of ``python -m utils.prompt``."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.prompt", description="Print what a run's model writes for each text, one line per text."
    )
    parser.add_argument("run", help="the folder of one run")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="without any, the lines of standard input")
    parser.add_argument("--raw", action="store_true", help="give the model the text as it is, without a template")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="(default: best)")
    parser.add_argument("--batch-size", type=int, default=1, help="texts generated together (default: 1)")
    add_arguments(parser)
    return parser.parse_intermixed_args(argv)


def check_texts(texts: Sequence[str]) -> None:
    """Raise UserError for a text that is the folder of a run: a pattern such as ``runs/*`` matched more than one."""
    from utils.runs.run import RECORD

    for text in texts:
        with contextlib.suppress(OSError, ValueError):  # of a text that is no path at all
            if text and (Path(text) / RECORD).is_file():
                raise UserError(f"{text} is the folder of a second run, not a text: give one run, then the texts")


def lines_of_input() -> Iterator[str]:
    """The lines of standard input as they arrive. Raises UserError for a line that is not UTF-8."""
    if sys.stdin.isatty():
        print("One text per line. Ctrl-D ends.", file=sys.stderr)
    try:
        for number, line in enumerate(sys.stdin):
            text = line.rstrip("\r\n")
            yield text if number else text.removeprefix("\ufeff")  # a byte order mark is no part of the first text
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8: convert it, e.g. iconv -f latin1 -t utf-8") from None


def continuations(
    run_folder: str,
    texts: Iterable[str],
    decoding: Decoding,
    *,
    raw: bool,
    checkpoint: str,
    batch_size: int,
    device: str,
    precision: str,
) -> Iterator[str]:
    """What the model of a run writes for each text, on one line; for an empty text nothing.

    Args:
        raw: give the model the texts as they are; else each is the source in the data set's prompt.
        batch_size: texts that are read, and generated, together.
        checkpoint, device, precision: as options of the command.

    Raises:
        UserError: no such run or checkpoint, or a text that is too long for the model.
    """
    from utils.config.settings import load_config
    from utils.evaluation import generating_model
    from utils.generation.generate import generate
    from utils.generation.prompts import fitted
    from utils.models.loading import max_positions
    from utils.processes.devices import autocast
    from utils.runs.trained import check_settings, checkpoint_of, one_run
    from utils.text import one_line

    run = one_run(run_folder)
    config = load_config(run.config_file)
    check_settings(run, config)
    folder = checkpoint_of(run, checkpoint)
    tokenizer, model, precision = generating_model(run, config, folder, decoding, device, precision)
    limit, source = max_positions(model), config.source
    templated = source.prompt("text") != "text"  # else blanks at the ends are a part of the prompt
    given = iter(texts)
    while batch := list(itertools.islice(given, batch_size)):
        prompts = [source.prompt(text.strip()) if templated and not raw else text for text in batch if text.strip()]
        if source.packed and not raw:  # as eval.py does
            prompts = fitted(prompts, tokenizer, decoding, limit)
        with autocast(model.device, precision):
            found = iter(generate(model, tokenizer, prompts, decoding, batch_size) if prompts else ())
        for text in batch:
            yield one_line(next(found)) if text.strip() else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, generate, print."""
    values: dict[str, Any] = vars(parse_arguments(argv))
    decoding = take_decoding(values, batch_size=1)
    from utils.io.hub import go_offline_without_network

    go_offline_without_network()  # before anything imports the hub's libraries
    from utils.log import run_log

    check_texts(values["texts"])
    texts = values.pop("texts") or lines_of_input()
    with run_log(None):
        for text in continuations(values.pop("run"), texts, decoding, **values):
            print(printable(text) if sys.stdout.isatty() else text, flush=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
