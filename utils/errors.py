"""``UserError``, the exit of every command (``run_cli``), and how texts from elsewhere are shown."""

from __future__ import annotations

import io
import os
import sys
import textwrap
import unicodedata
from collections.abc import Callable


def short_reason(error: BaseException, width: int = 400) -> str:
    """An error's text on one line, cut after a whole word where it is longer than ``width`` characters."""
    return textwrap.shorten(str(error), width, placeholder=" ...")


class UserError(Exception):
    """Something the user can fix: the text names the key or file at fault and the way out."""


def printable(text: object) -> str:
    """``text`` on one line, with an escape such as ``\\x1b`` in place of each character that a terminal could act on.

    These are control and format characters, line breaks, surrogates, and what has no character assigned. Names of
    files, fields of records and generated texts pass through here before they are shown. Spaces of all kinds stay.
    """
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def reason(error: Exception) -> str:
    """What went wrong, in one line of a report on several runs."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'its folder'}: {error.strerror}"
    return f"{type(error).__name__}: {short_reason(error, 300)}"


def print_anything() -> None:
    """Let stdout take every text: what its encoding lacks (in the locale POSIX all but ASCII) becomes a ``?``.

    stderr is so by itself, with escapes; in a table a single character keeps the columns in place.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def reader_is_gone() -> int:
    """The exit code where whoever reads stdout has seen enough (``| head``): a shell's for SIGPIPE; no more output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
    return 141


def comma_list(text: str) -> list[str]:
    """An option's value as a list of names: ``a, b`` gives a and b."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit: a UserError becomes one message on stderr and exit code 2."""
    print_anything()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # while its reader's absence can still be handled
    except UserError as error:
        print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)
        code = 2
    except BrokenPipeError:
        code = reader_is_gone()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
