"""``UserError``, whose text is for the user, and ``run_cli``, by which every command prints errors and exits."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterator


def short_reason(error: BaseException, width: int = 400) -> str:
    """An error's text, or its class without one, on one line, cut after a word beyond ``width`` characters."""
    return textwrap.shorten(str(error) or type(error).__name__, width, placeholder=" ...")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU, for which PyTorch and safetensors have no error class."""
    texts = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or (
        not isinstance(error, UserError) and any(text in str(error) for text in texts)
    )


class UserError(Exception):
    """An error that the user can fix. The text names the key or file at fault and the way out."""


class UnfitSettings(UserError):
    """Settings that do not fit the model or the data: on the same two the same command fails again, on any machine."""


def failed_trial(error: Exception) -> str:
    """How a trial of a model failed: an unknown kind of model may raise anything.

    Raises ``error`` again if it says nothing about the model: a UserError, or out of memory.
    """
    if isinstance(error, UserError) or is_out_of_memory(error):
        raise error
    return f"a trial ended with {type(error).__name__}: {str(error)[:100]}"


def printable(text: object) -> str:
    """``text`` on one line, with an escape such as ``\\x1b`` for each character that could control a terminal.

    These are control and format characters, line breaks, surrogates, and unassigned code points. Spaces of all kinds
    stay. Names of files, fields of records and generated texts pass through here before they are shown.
    """
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def reason(error: Exception) -> str:
    """The reason of an error, for one line of a report on several runs."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'its folder'}: {error.strerror}"
    return f"{type(error).__name__}: {short_reason(error, 300)}"


def print_anything() -> None:
    """Let stdout print every text: a ``?`` replaces what its encoding lacks (all but ASCII in the locale POSIX).

    A single character keeps the columns of a table aligned. stderr prints escapes by default. If a caller has closed
    stdout or stderr, as a daemon does, the texts are discarded.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def full_disk(error: Exception) -> UserError | None:
    """The message for a full disk under stdout, whose further output is then discarded. None for any other error.

    Writers of files name their file, so that an error without a name is about stdout.
    """
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
    if not full:
        return None
    _discard_output()
    return UserError("the output of this command cannot be written: no space is left on the device")


def reader_is_gone() -> int:
    """Discard all further output: the reader of stdout has left (``| head``). Returns the shell's code for SIGPIPE."""
    _discard_output()
    return 141


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python's last flush fails


@contextlib.contextmanager
def plain_warnings(about: str = "") -> Iterator[None]:
    """A context in which each Python warning is one line on stderr, after ``about``, without the code that gave it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(f"warning: {about}{printable(message)}", file=sys.stderr)
        yield


def comma_list(text: str) -> list[str]:
    """An option's value as a list of names: ``a, b`` gives a and b."""
    return [name.strip() for name in text.split(",") if name.strip()]


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit. A UserError becomes one message on stderr and exit code 2."""
    print_anything()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # here, where an error can be handled
    except UserError as error:
        code = _report(error)
    except BrokenPipeError:
        code = reader_is_gone()
    except OSError as error:
        if (full := full_disk(error)) is None:
            raise
        code = _report(full)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _report(error: UserError) -> int:
    """Print the error and return the exit code."""
    print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)
    return 2
