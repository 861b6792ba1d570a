"""The files of a base model: a run's record has their digests, and a run goes on from no others."""

from __future__ import annotations

import functools
from pathlib import Path

from utils.config.settings import ModelConfig
from utils.errors import UserError
from utils.io.files import sha256
from utils.io.hub import cached_folder
from utils.models.loading import model_source
from utils.runs.run import BASE, Run, recorded_digests

TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt", "*.model")
DECIDING = ("config.json", "*.safetensors", "pytorch_model*.bin", *TOKENIZER)


def base_digests(settings: ModelConfig) -> dict[str, str]:
    """The SHA-256 of each file that decides what the model computes, by name.

    Of a model from the hub these are the files in its cache: all of them once it is loaded.

    Raises:
        UserError: the folder is no saved model, or a file cannot be read.
    """
    return _digests(settings)[0]


def _digests(settings: ModelConfig) -> tuple[dict[str, str], bool]:
    """See ``base_digests``; and whether these are all files: of a model from the hub the cache may lack some."""
    source = model_source(settings.name, settings.gguf_file)
    local = Path(source).is_dir()
    folder = Path(source) if local else cached_folder(source, settings.gguf_file or "config.json")
    if folder is None:
        return {}, False
    patterns = DECIDING if settings.gguf_file is None else (settings.gguf_file,)
    try:
        return {path.name: _digest(path) for pattern in patterns for path in sorted(folder.glob(pattern))}, local
    except OSError as error:
        raise UserError(f"model.name={settings.name} cannot be read: {error.strerror}") from None


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file in this state, kept so that ``eval.py`` reads the base of many runs once."""
    return sha256(path)


def refuse_other_base(run: Run, settings: ModelConfig) -> None:
    """Raise UserError unless the base model is that of the run's record, as far as the record knows it.

    Files of the hub are compared where they are in the cache.
    """
    recorded = recorded_digests(run.record(), BASE) if run.record_file.exists() else {}
    if not recorded:
        return
    found, complete = _digests(settings)
    compared = recorded if complete else recorded.keys() & found
    others = sorted(name for name in compared if found.get(name) != recorded[name])
    if others:
        raise UserError(
            f"{run.path} was made from another base model: {', '.join(others)} in model.name={settings.name} differs "
            "from what the run began with. Give that model; to train on this one, give another output.path or remove "
            "the run's folder"
        )
