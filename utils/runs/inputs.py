"""What a run reads: ``inputs.json`` in its folder has the digest of each input, and a run goes on with no others.

- ``data/train``, ``data/validation``: all examples of a split in order, from a file or the hub. ``data/test`` joins
  them at the first evaluation
- ``model/<file>``: each file that decides what the base model and its tokenizer do
- ``adapter``: the files of ``model.adapter``, see ``start_adapter.py``

A start, a resume, an evaluation, a prompt and an export compare what they find with these.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from rosa import AdapterError
from rosa.files import ADAPTER_FILE, CONFIG_FILE, FROZEN_FILE, read_description
from rosa.peft_files import WEIGHTS_FILE
from utils.config.settings import Config, ModelConfig
from utils.data import add_texts, digest
from utils.errors import UserError
from utils.io.files import sha256
from utils.io.hub import cached_folder
from utils.models.loading import model_source
from utils.processes.group import Processes
from utils.runs.run import ADAPTER, Run

TRAINING = ("train", "validation")
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model")
DECIDING = ("config.json", "*.safetensors", "pytorch_model*.bin", *TOKENIZER)


def data_inputs(config: Config) -> dict[str, str]:
    """The digests of the two splits that training reads. ``config`` keeps their examples for the training itself.

    Raises:
        UserError: the data cannot be loaded.
    """
    return {f"data/{split}": digest(config.load(split, keep=True)) for split in TRAINING}


def model_inputs(run: Run, settings: ModelConfig) -> dict[str, str]:
    """The digest of each file of the base model; "none" for a file that ``run`` began with and the folder lacks.

    Of a model from the hub these are the files in its cache: all of them once it is loaded.

    Raises:
        UserError: the folder is no saved model, or a file cannot be read.
    """
    source = model_source(settings.name, settings.gguf_file)
    local = Path(source).is_dir()
    folder = Path(source) if local else cached_folder(source, settings.gguf_file or "config.json")
    if folder is None:
        return {}
    patterns = DECIDING if settings.gguf_file is None else (settings.gguf_file,)
    before = {name: "none" for name in run.inputs() if local and name.startswith("model/")}
    try:
        return before | {f"model/{p.name}": _digest(p) for pattern in patterns for p in sorted(folder.glob(pattern))}
    except OSError as error:
        raise UserError(f"model.name={settings.name} cannot be read: {error.strerror}") from None


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file in this state, kept so that ``eval.py`` reads the base of many runs once."""
    return sha256(path)


def adapter_files(folder: Path) -> list[Path]:
    """The files that ``rosa.load_adapter`` reads: an adapter's settings and its tensors, by the format of the settings.

    Raises:
        UserError: the folder holds no adapter.
    """
    missing = f"it lacks {CONFIG_FILE}"
    if not folder.is_dir():
        missing = "no such folder. A run that began with it keeps a copy, RUN/start_adapter: give that path instead"
    elif (folder / CONFIG_FILE).is_file():
        try:
            of_peft = "peft_type" in read_description(folder)
        except AdapterError as error:
            raise UserError(f"model.adapter={folder} cannot be used: {error}") from None
        first, *others = (WEIGHTS_FILE,) if of_peft else (ADAPTER_FILE, FROZEN_FILE)
        if (folder / first).is_file():
            return [folder / name for name in (CONFIG_FILE, first, *others) if (folder / name).is_file()]
        missing = f"it lacks {first}"
    raise UserError(f"model.adapter={folder} is not the folder of an adapter: {missing}")


def adapter_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of an adapter's files. Raises UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in adapter_files(folder):
            add_texts(digest, path.name, sha256(path))
    except OSError as error:
        raise UserError(f"model.adapter={folder} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def identifying(config: Config, inputs: dict[str, str]) -> dict[str, str]:
    """The inputs that are part of a run's identity: the adapter, and the data if only a path names them."""
    names = {ADAPTER, *(f"data/{split}" for split in TRAINING if config.source.needs_path)}
    return {name: inputs[name] for name in names & inputs.keys()}


def identity_inputs(config: Config) -> dict[str, str]:
    """The ``identifying`` inputs of a run with these settings, read now. The examples are kept as by ``data_inputs``.

    Raises:
        UserError: the adapter or the data cannot be read.
    """
    inputs = {}
    if config.model.adapter is not None:
        inputs[ADAPTER] = adapter_digest(Path(config.model.adapter).expanduser())
    if config.source.needs_path:
        inputs |= data_inputs(config)
    return inputs


def check_inputs(run: Run, found: dict[str, str], config: Config) -> None:
    """Raise UserError if an input of ``run`` differs from what is found now under the settings ``config``."""
    recorded = run.inputs()
    if others := _others(recorded, found):
        raise UserError(_other_inputs(run, others, config))


def agree_on_inputs(run: Run, found: dict[str, str], config: Config, processes: Processes) -> None:
    """Compare what each process has found with the main process and with the inputs of ``run``.

    Raises:
        UserError: an input of a process differs.
    """
    expected = processes.run_on_main(lambda: found | run.inputs())
    others = {name: both for part in processes.gather(_others(expected, found)) for name, both in part.items()}
    if others:
        raise processes.same_error(_other_inputs(run, others, config))


def _others(recorded: dict[str, str], found: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Both digests of each input that differs, by name."""
    return {name: (recorded[name], value) for name, value in found.items() if recorded.get(name, value) != value}


def _other_inputs(run: Run, others: dict[str, tuple[str, str]], config: Config) -> str:
    dataset, kinds = config.dataset, {name.partition("/")[0] for name in others}
    places = {
        "data": f"dataset.path={dataset.path}" if dataset.path else f"dataset.name={dataset.name}, no dataset.path",
        "model": f"model.name={config.model.name}",
        ADAPTER: str(run.start_adapter),
    }
    names = ", ".join(f"{name} was {str(before)[:8]}, is {now[:8]}" for name, (before, now) in sorted(others.items()))
    again = "remove its eval.json" if "data/test" in others else "give another output.path or remove the run's folder"
    return (
        f"{run.path} began with other inputs: {names} ({'; '.join(places[kind] for kind in sorted(kinds))}). Give what "
        f"it began with. To go on with these instead, {again}."
    )
