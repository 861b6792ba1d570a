"""A phone book: random keys of six letters, each with a random number of ten digits.

Nothing about a number follows from its key or from other pairs. What a model has learned of it is therefore what it has
stored, and the content is known to the bit (Allen-Zhu and Li 2024, arXiv 2404.05405, measure models in the same way).
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from string import ascii_lowercase, digits

from utils.data import DataSource, Example, refuse_path, register

LETTERS, DIGITS = 6, 10


@register
class PhoneBook(DataSource):
    """``dataset.size`` pairs of book number ``dataset.book``. A larger book of that number begins with the smaller one.

    All splits are the same pairs, because recall of the pairs that were trained is what is measured.
    """

    names = ("phone_book",)
    metrics = ("exact_match",)
    default_size = 200
    target_bits = DIGITS * math.log2(10)

    def prompt(self, source: str) -> str:
        return f"{source}:"

    def load(self, split: str, path: Path | None, cache: str | None) -> list[Example]:
        """See DataSource.load. Raises UserError when a path is given."""
        refuse_path("phone_book", path)
        rng = random.Random(f"phone book {self.book}")
        book: dict[str, str] = {}
        while len(book) < (self.size or self.default_size):
            key = "".join(rng.choices(ascii_lowercase, k=LETTERS))
            book.setdefault(key, "".join(rng.choices(digits, k=DIGITS)))
        return [Example(key, self.prompt(key), number, number) for key, number in book.items()]
