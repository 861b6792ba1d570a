"""From a configuration to finished runs: directories, locks, records, and failures."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from utils.config.settings import Config, load_config
from utils.errors import UnfitSettings, UserError
from utils.io.files import lock, own_folder, remove_leftovers, write_text
from utils.log import log, run_log
from utils.models.loading import check_method_fits, hidden_size
from utils.processes.devices import check_precision, resolve_device, resolve_precision
from utils.processes.group import connect, explain_lost_process
from utils.processes.signals import Interrupted, StopRequest, stop_on_signals
from utils.runs import RUN_POINTER, UNFIT_NOTE, Run, checkpoints
from utils.runs.checkpoint_folder import refuse_other_run
from utils.runs.identity import group_hash, run_directory, unread_keys
from utils.runs.inputs import check_inputs, data_inputs, identity_inputs, model_inputs
from utils.runs.loggers import check_installed
from utils.runs.provenance import memory_mib, now, reset_peak_memory
from utils.runs.run import ADAPTER, IDENTITY
from utils.runs.start_adapter import keep_start
from utils.training.dry_run import estimate, report
from utils.training.failures import Diverged, advice
from utils.training.loop import fit
from utils.training.record import current_progress, description, start_fields
from utils.training.setup import set_up
from utils.training.training import Training


@contextlib.contextmanager
def _noting_unfit_settings() -> Iterator[None]:
    """Note for a job runner that its job's settings do not fit, beside what ``_point_to`` notes."""
    try:
        yield
    except UnfitSettings as error:
        if pointer := os.environ.get(RUN_POINTER):
            with contextlib.suppress(OSError):
                write_text(Path(pointer + UNFIT_NOTE), f"{error}\n")
        raise


@_noting_unfit_settings()
def train_all(config: Config, overrides: list[str]) -> float | None:
    """Train ``config.runs`` seeds, one directory each. Returns the best validation loss of the last one."""
    check_method_fits(config)
    check_installed(config.logging.to)
    processes = connect(resolve_device(config.train.device))
    if processes.main and (unread := unread_keys(config)):
        method, level = config.fnmodel.name, getattr(config.adapter, "level", None)
        setting = f"fnmodel.name={method}" + (f" (level={level})" if level else "")
        names = ", ".join(unread)
        print(
            f"warning: without effect with {setting} and dataset.name={config.dataset.name}: {names}", file=sys.stderr
        )
    loss = None
    with stop_on_signals(processes) as stop, explain_lost_process():
        if config.dry_run:
            try_run(config, stop)
            return None
        for seed in range(config.seed, config.seed + config.runs):
            stop.check(now=True)
            loss = train_one(dataclasses.replace(config, seed=seed, runs=1), overrides, stop)
    return loss


def try_run(config: Config, stop: StopRequest) -> None:
    """Print what the run of the first seed takes in memory and time (``dry_run``). Nothing of it is kept."""
    processes = stop.processes
    to = [name for name in config.logging.to if name == "tensorboard"]  # the others' runs are seen by other people
    config = dataclasses.replace(config, logging=dataclasses.replace(config.logging, to=to))
    with tempfile.TemporaryDirectory() as folder, run_log(None, processes.main):
        run = Run(Path(processes.run_on_main(lambda: folder)))
        with _explained(config, run, lambda: None):
            precision = processes.run_on_main(lambda: _precision(config))
            device = torch.device(resolve_device(config.train.device))
            start, memory = time.perf_counter(), memory_mib(device)
            training = set_up(config, precision, run, stop)
            found = estimate(training, start, memory)
            training.close()
        if processes.main:
            print(report(training, found))


def train_one(config: Config, overrides: list[str], stop: StopRequest) -> float | None:
    """Train one seed: resume an unfinished run, skip a finished one. Returns its best validation loss."""
    processes = stop.processes
    with contextlib.ExitStack() as stack:
        precision, path, group, inputs = processes.run_on_main(lambda: find_run(config))
        config, run = config.with_precision(precision), Run(path)
        identity = dict(zip(IDENTITY, (config.fnmodel.method, config.seed, group), strict=True))
        finished = processes.run_on_main(lambda: _finished_record_or_lock(config, run, identity, stack))
        if finished:
            return (finished["best"] or {}).get("loss")
        stack.enter_context(run_log(run.log_file, processes.main))
        return _train(config, run, identity, inputs.get(ADAPTER), overrides, stop)


def _precision(config: Config) -> str:
    """The precision that the settings name, or that auto chooses on this machine: fp32, bf16 or fp16."""
    size = hidden_size(config.model.name, config.model.gguf_file)
    return resolve_precision(config.train.precision, resolve_device(config.train.device), size)


def find_run(config: Config) -> tuple[str, Path, str, dict[str, str]]:
    """The precision, the directory, the group hash and the ``identifying`` inputs of the run with these settings.

    With ``train.precision=auto``, a run that began in another precision on another machine goes on in that one.

    Raises:
        UserError: this machine does not have the precision, or the data or the adapter cannot be read.
    """
    chosen = _precision(config)
    inputs = identity_inputs(config)
    other = "fp32" if chosen == "bf16" else "bf16"
    candidates = (chosen, other) if config.train.precision == "auto" else (chosen,)
    paths = {precision: run_directory(config.with_precision(precision), inputs) for precision in candidates}
    precision = next((name for name, path in paths.items() if Run(path).record_file.exists()), chosen)
    path = paths[precision]
    if precision != chosen and _record(Run(path))["status"] != "finished":
        check_precision(precision, resolve_device(config.train.device), f"{path} began in it")
    return precision, path, group_hash(config.with_precision(precision), inputs), inputs


def _finished_record_or_lock(
    config: Config, run: Run, identity: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Any] | None:
    """The record of a finished run. Else None, after the run's directory is made, and locked until ``stack`` closes."""
    record = _record(run)
    refuse_other_run(run, run.record_file, identity | {key: record[key] for key in IDENTITY if key in record}, identity)
    if record["status"] == "finished":
        data = data_inputs(config) if config.dataset.path else {}  # the hub's are not loaded only to be compared
        check_inputs(run, data | model_inputs(run, config.model), config)
        _point_to(run)
        other = _other_test_data(config, run)
        print(f"{run.path} is finished already; remove the folder to train again{other}", file=sys.stderr)
        with contextlib.suppress(OSError):  # a read-only folder is finished all the same
            checkpoints.restore_links(run)
            _remove_last_checkpoint(config, run)  # a kill may have left it
        return record
    stack.enter_context(_directory(run))
    return None


def _other_test_data(config: Config, run: Run) -> str:
    """What to say if a finished run would be evaluated on the test data of another ``dataset.path`` than the given."""
    given = config.dataset.folder()
    with contextlib.suppress(UserError):  # a configuration that cannot be read is named by eval.py
        recorded = load_config(run.config_file).dataset.folder()
        if given is not None and (recorded is None or recorded.resolve() != given.resolve()):
            return (
                f". Its test data are those of {recorded or 'the hub'}; for the ones in dataset.path: "
                f"python eval.py {run.path} --dataset-path {given}"
            )
    return ""


def _train(
    config: Config, run: Run, identity: dict[str, Any], start: str | None, overrides: list[str], stop: StopRequest
) -> float | None:
    """Train one seed in its locked directory. Returns its best validation loss.

    Args:
        identity: of the run, see ``refuse_other_run``.
        start: the digest of ``model.adapter``.
    """
    log.info("run directory %s, precision %s", run.path, config.train.precision)
    reset_peak_memory()
    with _explained(config, run, lambda: None):
        stop.processes.run_on_main(lambda: check_inputs(run, model_inputs(run, config.model), config))
        training = set_up(config, config.train.precision, run, stop, identity)
        described = description(training)
        if start is not None:
            stop.processes.run_on_main(lambda: keep_start(run, config, start))
            training.data.inputs[ADAPTER] = start
        if stop.processes.main:
            _write_snapshots(config, run, overrides)
            run.add_inputs(training.data.inputs)
            _point_to(run)  # only now: a run of other data was refused by set_up
    _note(training, **start_fields(training), **described, **current_progress(training))
    _fit(training)
    _note(training, status="finished", finished=now(), **current_progress(training))
    if stop.processes.main:  # only now: before the record says finished, a killed run would need it to resume
        _remove_last_checkpoint(config, run)
    log.info("finished: %s", run.path)
    return (training.progress.best or {}).get("loss")


def _fit(training: Training) -> None:
    """Train to the end. If training stops before, write the reason into the record."""
    try:
        with _explained(training.config, training.run, lambda: training.progress.step):
            with explain_lost_process():
                fit(training)
            training.close()
    except Interrupted as interrupt:
        _note(training, status="interrupted", error=None, **current_progress(training))
        log.info("interrupted by %s at step %d", interrupt, training.progress.step)
        raise
    except KeyboardInterrupt:
        _note(training, status="interrupted", error="interrupted between checkpoints")
        raise
    except UserError as error:
        _note_failure(training, str(error), isinstance(error, Diverged))
        raise
    except Exception as error:
        log.error("%s", traceback.format_exc())
        _note_failure(training, f"{type(error).__name__}: {error}"[:1000])
        raise


def _note(training: Training, **fields: Any) -> None:
    """Write fields of the run's record, on the main process."""
    if training.processes.main:
        with _explained(training.config, training.run, lambda: training.progress.step):
            training.run.update_record(**fields)


def _note_failure(training: Training, text: str, diverged: bool = False) -> None:
    with contextlib.suppress(UserError):  # the record is on the same disk that failed, and that error is shown already
        _note(training, status="failed", error=text, diverged=diverged)


def _remove_last_checkpoint(config: Config, run: Run) -> None:
    """Remove a finished run's last checkpoint unless ``train.keep_last`` is set."""
    if not config.train.keep_last:
        checkpoints.remove_last(run)


def _record(run: Run) -> dict[str, Any]:
    """The run's record; for a new run one with the status ``new``."""
    if not run.record_file.exists():
        return {"status": "new"}
    try:
        return run.record()
    except UserError as error:
        raise UserError(f"{error}. Remove this file to go on from the run's checkpoints.") from None


@contextlib.contextmanager
def _directory(run: Run) -> Iterator[None]:
    """Make the run's directory and lock it. If training fails before the first record, remove it again."""
    new = not run.path.exists()
    lock_file = run.lock_file("train")
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=run.path).close()  # raises if the folder cannot be written
        locked = contextlib.ExitStack()
        locked.enter_context(lock(lock_file, "trained"))
    except OSError as error:
        raise UserError(f"output.path: {run.path} cannot be written: {error.strerror}") from None
    with locked:
        remove_leftovers(run.record_file, run.config_file, run.overrides_file, run.inputs_file)
        try:
            yield
        except BaseException:
            if new and not run.record_file.exists():
                with contextlib.suppress(OSError):  # not empty, or its disk has failed
                    for file in (lock_file, run.log_file):
                        file.unlink(missing_ok=True)
                    run.path.rmdir()
                    run.path.parent.rmdir()
            raise


@contextlib.contextmanager
def _explained(config: Config, run: Run, step: Callable[[], int | None]) -> Iterator[None]:
    """Turn an error that the user can fix (memory, disk) into a UserError with advice."""
    try:
        yield
    except Exception as error:
        if known := advice(error, config.train, run.path, step()):
            raise known from None
        raise


def _write_snapshots(config: Config, run: Run, overrides: list[str]) -> None:
    """Write the resolved configuration and the overrides of the command line, as Hydra does."""
    write_text(run.config_file, OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))
    own_folder(run.overrides_file.parent)
    write_text(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create(overrides)))


def _point_to(run: Run) -> None:
    """Note for a job runner that its job trains ``run``; a sweep's search takes the loss of the last one for the job's.

    Runs that are gone are left out: the job ran before, on data or with settings whose run would be another one.
    """
    pointer = os.environ.get(RUN_POINTER)
    if pointer:
        path = Path(pointer)
        noted = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        own = str(run.path.resolve())
        lines = [*(line for line in dict.fromkeys(noted) if line != own and Path(line).exists()), own]
        if lines != noted:
            write_text(path, "".join(f"{line}\n" for line in lines))
        Path(pointer + UNFIT_NOTE).unlink(missing_ok=True)
