"""The messages of a command: lines and progress bars in a terminal, plain lines elsewhere and in train.log.

If train.log cannot be written, there is one warning and training goes on. Errors of the terminal are ignored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from utils.io.files import open_in_place

_all = logging.getLogger("rosa")  # of the library too
log = _all.getChild("run")

FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")

LINE_EVERY = 60.0  # seconds between lines that replace a progress bar


class _AboveBar(logging.Handler):
    """Writes records to stderr, above a progress bar. If there is a bar, ``progress`` lines go to the file only."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe or a full disk behind stderr
            if not (getattr(record, "progress", False) and sys.stderr.isatty()):
                tqdm.write(record.getMessage(), file=sys.stderr)


class _File(logging.StreamHandler[TextIO]):
    """Writes records to train.log until that fails."""

    def __init__(self, path: Path) -> None:
        descriptor = open_in_place(path)
        os.lseek(descriptor, 0, os.SEEK_END)
        super().__init__(os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace"))
        self.path = path
        self.setFormatter(FORMAT)

    def handleError(self, record: logging.LogRecord) -> None:
        _all.removeHandler(self)
        log.warning("%s cannot be written any more: %s. Training goes on without it.", self.path, sys.exc_info()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        super().close()


@contextlib.contextmanager
def run_log(file: Path | None, main: bool = True) -> Iterator[None]:
    """Send ``log``, and the messages of the library, to the terminal and to ``file`` within a ``with`` block.

    Args:
        file: the run's train.log; None for the terminal alone.
        main: whether this is the process that writes; the others print nothing.
    """
    handlers: list[logging.Handler] = [_AboveBar()] if main else []
    before = _all.level, _all.propagate
    _all.setLevel(logging.INFO if main else logging.CRITICAL)
    _all.propagate = False
    for handler in handlers:
        _all.addHandler(handler)
    try:
        if main and file is not None:
            try:
                handlers.append(_File(file))
                _all.addHandler(handlers[-1])
            except OSError as error:
                log.warning("%s cannot be written: %s. Training goes on without it.", file, error.strerror)
        yield
    finally:
        for handler in handlers:
            _all.removeHandler(handler)
            handler.close()
        _all.setLevel(before[0])
        _all.propagate = before[1]


def progress(text: str) -> None:
    """Log a line of progress. A terminal shows its progress bar instead."""
    log.info(text, extra={"progress": True})


def progress_bar(total: int, start: int = 0, main: bool = True) -> tqdm:
    """A bar of training steps on stderr if that is a terminal. Elsewhere nothing: training logs its own lines."""
    return tqdm(total=total, initial=start, unit="step", disable=not (main and sys.stderr.isatty()), dynamic_ncols=True)


def work_bar(total: int, name: str, unit: str, main: bool = True) -> tqdm | _Lines:
    """The progress of work that takes minutes: a bar in a terminal, elsewhere a line each minute.

    Args:
        total: number of units. Call ``update`` of the result to count them.
        name, unit: the title of the work, and the name of one unit.
        main: whether this is the process that writes; the others print nothing.
    """
    if main and not sys.stderr.isatty():
        return _Lines(total, name, unit)
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=not main, dynamic_ncols=True)


class _Lines:
    """The methods of tqdm that ``work_bar`` needs, with lines in the log instead of a bar."""

    def __init__(self, total: int, name: str, unit: str) -> None:
        self.total, self.name, self.unit, self.done = total, name, unit, 0
        self.start = self.printed = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Count more units as done."""
        self.done += count
        now = time.monotonic()
        if now - self.printed >= LINE_EVERY:
            self.printed = now
            left = tqdm.format_interval((now - self.start) / self.done * (self.total - self.done))
            log.info("%s: %s %d of %d, about %s left", self.name, self.unit, self.done, self.total, left)
