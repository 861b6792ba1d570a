"""Hydra's own errors, before ``main`` begins, in one message that says what to type instead."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from utils.config.schema import deleted_key, unknown_key
from utils.config.settings import schema
from utils.errors import full_disk, reader_is_gone
from utils.text import suggestions

RAW = "HYDRA_FULL_ERROR"  # makes Hydra raise its errors; without it, it prints them and exits
NO_SETTINGS = (
    "error: settings are KEY=VALUE without dashes, such as train.lr=1e-3. Options such as -m come before all of them: "
    "python train.py -m fnmodel.name=lora train.lr=1e-3,1e-2"
)
RERUN = "--experimental-rerun"


@contextlib.contextmanager
def hydra_errors_explained() -> Iterator[None]:
    """A context for the call of Hydra's ``main``. Its errors become one message on stderr and exit code 2.

    If HYDRA_FULL_ERROR is set, there is a traceback instead.
    """
    if any(len(word) > 2 and RERUN.startswith(word.partition("=")[0]) for word in sys.argv[1:]):
        print(
            f"error: {RERUN} reads a pickle, which could run any code: give the run's settings again", file=sys.stderr
        )
        sys.exit(2)
    logging.raiseExceptions = "--info" not in sys.argv  # which logs to stdout: its reader may leave
    if RAW in os.environ:
        yield
        return
    os.environ[RAW] = "1"
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # the help, here where an error can be handled
    except SystemExit as ended:
        raised_in = traceback.extract_tb(ended.__traceback__)[-1].filename
        if ended.code and raised_in == argparse.__file__:  # which has named the words
            print(NO_SETTINGS, file=sys.stderr)
        raise
    except BrokenPipeError:  # --help | head
        sys.exit(reader_is_gone())
    except (HydraException, OmegaConfBaseException, OSError) as error:  # any other is a bug, in the training perhaps
        print(f"error: {explain(full_disk(error) or error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        os.environ.pop(RAW, None)


def explain(error: Exception) -> str:
    """The message for an error on the command line, and what to type instead."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None and cause.full_key:
        if cause.full_key in schema():
            return deleted_key(cause.full_key)
        groups = [] if "." in cause.full_key else ["experiment"]
        return unknown_key(cause.full_key, [*map(str, cause.parent_node), *groups])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{Path(group).name}={name} is not a file of configs/{group}. {suggestions(name, error.options)}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return f"--config-name {error.missing_cfg_file} is not a file of configs: leave it out, which gives train"
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not key.strip("+~"):
        return (
            f"{override} is not an override, which is KEY=VALUE. A value with blanks or special characters needs two "
            "pairs of quotes, one for the shell and one for Hydra: \"output.path='my runs'\""
        )
    quoted = value.strip("'\"").replace("'", "\\'")
    return (
        f"the value of {override} cannot be read: with characters such as = ( ) [ ] {{ }} , or letters beyond ASCII it "
        f"needs two pairs of quotes, one for the shell and one for Hydra: \"{key}='{quoted}'\""
    )
