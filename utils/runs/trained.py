"""A run's trained model: its settings are checked, its checkpoint is verified, its weights are loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from utils.config.settings import Config, ModelConfig
from utils.errors import UserError
from utils.io.files import read_object
from utils.models.loading import load_model, load_tokenizer, model_source
from utils.runs.checkpoint_folder import load_weights, refuse_other_run, verify
from utils.runs.identity import group_hash
from utils.runs.inputs import check_inputs, identifying, model_inputs
from utils.runs.run import FIRST_IDS, IDENTITY, RECORD, SUMMARY, Run
from utils.runs.start_adapter import kept_start


def one_run(path: str) -> Run:
    """The run in the folder ``path``. Raises UserError if it is not one run's folder."""
    run = Run(Path(path))
    if not run.record_file.is_file():
        what = "is not a folder" if not run.path.is_dir() else f"is not a run: it has no {RECORD}"
        raise UserError(f"{path} {what}. Give one run, RUNS/<dataset>/<model>-<method>-...")
    return run


def checkpoint_of(run: Run, name: str = "best") -> Path:
    """The checkpoint ``name``, best or last, once its files are verified.

    Raises:
        UserError: the run has none, or a file is missing or damaged.
    """
    folder, status = {"best": run.best, "last": run.last}[name], run.record()["status"]
    if not folder.is_dir():
        way_out = "give --checkpoint best" if name == "last" and run.best.is_dir() else "run its training command again"
        raise UserError(f"{run.path} has no checkpoint '{name}' (its training is {status}): {way_out}")
    folder = folder.resolve()  # a training that goes on may move the link meanwhile
    verify(folder)
    return folder


def check_settings(run: Run, config: Config) -> None:
    """Raise UserError if the saved configuration is not the one that the run was trained with.

    ``model.name`` may differ, because the model's folder may have moved. A checkpoint does not load into another model.
    """
    record = run.record()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, name=record.get("model", config.model.name))
    )
    group = group_hash(config, identifying(config, run.inputs()))
    if (record.get("group"), record.get("seed")) != (group, config.seed):
        raise UserError(
            f"{run.config_file} was changed after the training: its settings are not those of {run.record_file.name}. "
            f"Restore it (the overrides given on the command line are in {run.overrides_file}), or remove the folder "
            "and train with the new settings"
        )


def check_base_found(run: Run, config: Config) -> None:
    """Raise UserError if the base model's folder is gone. It may have moved: see ``check_settings``."""
    try:
        model_source(config.model.name, config.model.gguf_file)
    except UserError as error:
        raise UserError(f"{error}. If it was moved, give its new path as model.name in {run.config_file}") from None


def load_base(settings: ModelConfig, start: str | Path | None = None) -> Any:
    """The base model of a run; with the adapter in the folder ``start`` merged, if that is given."""
    return load_model(settings.name, settings.dropout, gguf=settings.gguf_file, adapter=start)


def tokenizer_of(run: Run, config: Config) -> Any:
    """The base model's tokenizer. It begins texts as the run's record says."""
    tokenizer = load_tokenizer(config.model.name, config.model.gguf_file)
    if run.record_file.exists():
        tokenizer.first_ids = run.record().get(FIRST_IDS, [])
    return tokenizer


def load_trained(run: Run, config: Config, checkpoint: Path, *, keep_base: bool = False) -> tuple[Any, Any]:
    """The tokenizer and the model with a checkpoint's weights, its adapter layers in place, on the CPU.

    Its configuration has the dropout of the base model, not that of the training. ``keep_base``: see ``rosa.inject``.

    Raises:
        UserError: the base model, the adapter that the run starts from, or the checkpoint cannot be loaded.
    """
    _refuse_other_checkpoint(run, checkpoint)
    check_base_found(run, config)
    check_inputs(run, model_inputs(run, config.model), config)
    tokenizer = tokenizer_of(run, config)
    model = load_base(dataclasses.replace(config.model, dropout=None), kept_start(run, config))
    check_inputs(run, model_inputs(run, config.model), config)  # again: a hub's model is now in the cache
    load_weights(checkpoint, model, keep_base=keep_base)
    return tokenizer, model


def _refuse_other_checkpoint(run: Run, checkpoint: Path) -> None:
    """Raise UserError if a checkpoint is not one that this training of this run has written."""
    record, summary = run.record(), read_object(checkpoint / SUMMARY)
    refuse_other_run(run, checkpoint, summary.get("run"), {key: record.get(key) for key in IDENTITY})
    progress = summary.get("progress")
    best = progress.get("best") if isinstance(progress, dict) else None
    if record["status"] == "finished" and best != record.get("best"):
        raise UserError(
            f"{checkpoint} belongs to another training of these settings: its best validation is not that of "
            f"{run.record_file}. Put this run's own checkpoints back, or remove the run's folder and train again"
        )
