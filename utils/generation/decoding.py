"""``Decoding``: beams, length penalty, lengths; and its options on a command line. Made without torch."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from utils.errors import UserError


def _option(default: float, about: str, minimum: int | None = None) -> Any:
    """A field with its lower bound, as in ``rosa.settings.option``, and its text in a command's help."""
    return field(default=default, metadata={"minimum": minimum, "help": about})


@dataclass(frozen=True)
class Decoding:
    """How text is generated; the defaults are the published ones.

    Attributes:
        num_beams: beams of the beam search; 1 is greedy.
        length_penalty: a beam's score is divided by its length to this power.
        no_repeat_ngram_size: no n-gram of this size occurs twice, the prompt included (as published); 0 turns this off.
        max_new_tokens: longest output, in tokens.
    """

    num_beams: int = _option(10, "1 is greedy", minimum=1)
    length_penalty: float = _option(0.8, "of the beam search")
    no_repeat_ngram_size: int = _option(4, "0: off; counts the prompt, as published", minimum=0)
    max_new_tokens: int = _option(128, "longest output in tokens", minimum=1)


def flag(name: str) -> str:
    """The option of a command for a field."""
    return f"--{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``Decoding``, and those that say where and how the model computes."""
    for option in dataclasses.fields(Decoding):
        text = f"{option.metadata['help']} (default: {option.default})"
        parser.add_argument(flag(option.name), type=type(option.default), default=option.default, help=text)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    text = "auto: what this machine is fast in, as for train.py, whatever the run computed in (default: auto)"
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=text)


def take_decoding(values: dict[str, Any], **least: int) -> Decoding:
    """Remove the options of ``Decoding`` from a command's ``values``, and return them.

    Args:
        least: the least values of other options, which are checked too; None is no value.

    Raises:
        UserError: a value below its least one, or a length penalty that is not finite.
    """
    least |= {option.name: option.metadata["minimum"] for option in dataclasses.fields(Decoding)}
    for name, minimum in least.items():
        if minimum is not None and values[name] is not None and values[name] < minimum:
            raise UserError(f"{flag(name)} {values[name]} must be at least {minimum}")
    if not math.isfinite(values["length_penalty"]):
        raise UserError(f"--length-penalty {values['length_penalty']} must be a finite number")
    return Decoding(**{option.name: values.pop(option.name) for option in dataclasses.fields(Decoding)})
