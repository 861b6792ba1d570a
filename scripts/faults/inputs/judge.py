"""Give a command one bad input, and judge what it does."""

from __future__ import annotations

import contextlib
import hashlib
import io
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError

ACCEPTED, REFUSED, WRONG, TRACEBACK, HALF, MUTE = (
    "accepted",
    "refused",
    "wrong result",
    "traceback",
    "half-written",
    "mute",
)
GOOD = (ACCEPTED, REFUSED)


@dataclass
class Input:
    """One bad input.

    Attributes:
        what: what is wrong with it.
        call: the command, in process; its value is the exit code, None or any result.
        names: the message must contain one of them: the file or the key at fault.
        watch: files below it must stay as they are where the command refuses.
        check: of the result and what was printed, where the input was accepted: what is wrong, None if it is right.
    """

    what: str
    call: Callable[[], Any]
    names: tuple[str, ...]
    watch: Path | None = None
    check: Callable[[Any, str], str | None] = lambda _result, _printed: None
    errors: tuple[type[Exception], ...] = field(default=(UserError,))


def judge(item: Input) -> tuple[str, str]:
    """One of the verdicts above, and what is needed to understand it."""
    before = contents(item.watch)
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            result = item.call()
        refused = isinstance(result, int) and not isinstance(result, bool) and result != 0
        message = out.getvalue()
        if not refused and (wrong := item.check(result, message)):
            return WRONG, f"{wrong}; printed: {message[-500:]}"
    except item.errors as error:
        refused, message = True, f"{out.getvalue()}\n{error}"
    except SystemExit as left:
        refused, message = left.code not in (None, 0), f"{out.getvalue()}\n{left.code}"
    except BaseException:
        return TRACEBACK, traceback.format_exc()[-1500:]
    if not refused:
        return ACCEPTED, message
    if (after := contents(item.watch)) != before:
        changed = sorted(str(name) for name in {*before, *after} if before.get(name) != after.get(name))
        return HALF, f"{', '.join(changed)}: {message[-500:]}"
    if not any(name in message for name in item.names):
        return MUTE, f"names none of {item.names}: {message[-500:]}"
    return REFUSED, message


def contents(folder: Path | None) -> dict[Path, str]:
    """Hashes of the files that a reader of results looks at; locks, logs and caches are left out."""
    if folder is None:
        return {}
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log"))
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
