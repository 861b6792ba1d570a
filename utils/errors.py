"""The one exception whose text is meant for the person at the command line."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable


def short_reason(error: BaseException, width: int = 400) -> str:
    """An error's text on one line, cut after a whole word where it is longer than ``width`` characters."""
    return textwrap.shorten(str(error), width, placeholder=" ...")


class UserError(Exception):
    """Something the user can mend: the text names the key or file at fault and the way out."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit: a UserError becomes one message on stderr and exit code 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # its reader has seen enough: | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        code = 141  # as a shell tells of SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
