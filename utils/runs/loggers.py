"""The places that ``logging.to`` names, which show a run's logging points to people: TensorBoard, wandb, trackio.

Their packages are imported only when they are named. A logger that fails is left out after one warning, because a
display must not end a training. wandb and trackio know a run by an id that ``loggers.json`` in its directory keeps, so
that a resume goes on in the same run there. What else they need is read from their own environment variables, such as
``WANDB_PROJECT``, ``WANDB_MODE=offline`` or ``TRACKIO_PROJECT``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from utils.errors import UserError, short_reason
from utils.io.files import read_object, write_json
from utils.log import log
from utils.runs.run import Run

PROJECT = "rosa"  # where runs go on wandb and trackio, unless their environment variables name another


def check_installed(names: Iterable[str]) -> None:
    """Raise UserError if a logger's package, which has the logger's name, is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"logging.to names {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}, or leave "
            "it out of logging.to"
        )


class Logger(ABC):
    """One place that shows the numbers and texts of a run.

    Its name in ``logging.to`` (``LOGGERS``), and that of its package, is the name of the class in small letters.

    Args:
        settings: the run's configuration as plain values by dotted key.
        progress: that of the checkpoint from which training resumes (``Progress``).

    Attributes:
        holds_repeated: whether it has what an earlier process of this run logged after the checkpoint from which
            training resumes. It must not get these points again.
    """

    holds_repeated = False

    @abstractmethod
    def __init__(self, run: Run, settings: dict[str, Any], progress: Any) -> None: ...

    @abstractmethod
    def log(self, values: dict[str, Any], step: int) -> None:
        """Show named numbers or texts of an optimizer step."""

    def finish(self, metrics: dict[str, float]) -> None:  # noqa: B027  (most have no place for them)
        """Show the final metrics of a run that has ended well."""

    def flush(self) -> None:  # noqa: B027  (for those whose files a checkpoint measures)
        """Write what is waiting to the disk."""

    @abstractmethod
    def close(self) -> None:
        """Write everything and end."""


class TensorBoard(Logger):
    """TensorBoard's files in the run's directory, taken back to the sizes that a checkpoint recorded."""

    def __init__(self, run: Run, settings: dict[str, Any], progress: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _quiet_writer
        self._settings = settings
        sizes: dict[str, int] = progress.board
        for path in run.board_files():
            if path.name in sizes and path.is_file() and not path.is_symlink():
                os.truncate(path, min(sizes[path.name], path.stat().st_size))
            else:
                path.unlink()
        # a running TensorBoard may have read the steps that are repeated now: purge_step makes it drop them
        self._writer = SummaryWriter(str(run.path), purge_step=progress.step + 1 if progress.step else None)

    def log(self, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(name, value, step)

    def finish(self, metrics: dict[str, float]) -> None:
        self._writer.add_hparams(self._settings, {f"final/{k}": v for k, v in metrics.items()}, run_name=".")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB(Logger):
    """A run on Weights & Biases, online or as ``WANDB_MODE`` says; its own files go to ``wandb/`` in the run."""

    def __init__(self, run: Run, settings: dict[str, Any], progress: Any) -> None:
        import wandb

        identity, self.holds_repeated = run_id(run, "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.path),
            id=identity,
            name=run.path.name,
            resume="allow",
            config=settings,
            allow_val_change=True,  # such as logging.print_freq at a resume
            settings=wandb.Settings(console="off"),  # the run's own train.log has the output
        )
        # wandb's own step refuses what comes late: an axis of this name takes all values of a step, also after a resume
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int) -> None:
        self._run.log({**values, "step": step})

    def finish(self, metrics: dict[str, float]) -> None:
        self._run.summary.update({f"final/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class Trackio(Logger):
    """A run of trackio, which keeps it on this machine."""

    def __init__(self, run: Run, settings: dict[str, Any], progress: Any) -> None:
        import trackio

        identity, self.holds_repeated = run_id(run, "trackio")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.path.name}-{identity}",
            resume="allow",
            config=settings,
            embed=False,
        )

    def log(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Loggers:
    """The loggers of a run that work; ``settings`` and ``progress`` as for a ``Logger``."""

    def __init__(self, names: Iterable[str], run: Run, settings: dict[str, Any], progress: Any) -> None:
        plain = {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in settings.items()}
        self._run = run
        self._working: dict[str, Logger] = {}
        kinds = {kind.__name__.lower(): kind for kind in Logger.__subclasses__()}
        for name in names:
            with self._guarded(name):
                self._working[name] = kinds[name](run, plain, progress)

    def each(self, act: Callable[[Logger], Any]) -> None:
        """Call ``act`` with each logger. One that fails is left out from then on."""
        for name, logger in list(self._working.items()):
            with self._guarded(name):
                act(logger)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: a display must not end a training
            self._working.pop(name, None)
            where = f"TensorBoard's files in {self._run.path} cannot be written" if name == "tensorboard" else name
            log.warning("%s: %s. Training goes on.", where, short_reason(error))


def run_id(run: Run, logger: str) -> tuple[str, bool]:
    """The id by which ``logger`` knows a run, and whether it is from an earlier start."""
    ids = read_object(run.loggers_file) if run.loggers_file.exists() else {}
    known = isinstance(ids.get(logger), str)
    if not known:
        ids[logger] = secrets.token_hex(4)
        write_json(run.loggers_file, ids)
    return ids[logger], known


def _quiet_writer(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback for TensorBoard's writing thread: the next call raises its error, which is reported."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failed)
