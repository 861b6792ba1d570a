"""The adapter that a run starts from (``model.adapter``): its digest, and the run's own copy.

The adapter is merged into the base model before anything else. Its digest takes the place of its path in the run's
identity. The run keeps a copy of its files, so that it can be evaluated and exported once the folder is gone, or on
another machine: checkpoints do not hold all weights of the model that they adapt.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from rosa import AdapterError
from rosa.files import ADAPTER_FILE, CONFIG_FILE, FROZEN_FILE, read_description
from rosa.peft_files import WEIGHTS_FILE
from utils.config.settings import Config
from utils.data import add_texts
from utils.errors import UserError
from utils.io.files import own_folder, sha256, sync
from utils.runs.run import ADAPTER, Run


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


def given_digest(config: Config) -> str | None:
    """The digest of the folder in ``model.adapter``; None where that is not set."""
    return None if config.model.adapter is None else adapter_digest(Path(config.model.adapter).expanduser())


def keep_start(run: Run, config: Config, digest: str | None) -> dict[str, str]:
    """Copy the adapter into the run's directory, unless it is there. To be called once the adapter was loaded.

    Args:
        digest: the adapter's in the run's identity; None where ``model.adapter`` is not set.

    Returns:
        The record's field for it, if any.

    Raises:
        UserError: the folder has changed since ``digest`` was taken, so that something else may have been loaded.
    """
    if config.model.adapter is None or digest is None:
        return {}
    source = Path(config.model.adapter).expanduser()
    _check_unchanged(source, source, digest)
    if not run.start_adapter.exists() or adapter_digest(run.start_adapter) != digest:
        temporary = run.path / f".{run.start_adapter.name}"
        for folder in (temporary, run.start_adapter):
            shutil.rmtree(folder, ignore_errors=True)
        own_folder(temporary)
        copies = [shutil.copyfile(path, temporary / path.name) for path in adapter_files(source)]
        _check_unchanged(source, temporary, digest)
        sync(*copies, temporary)
        temporary.rename(run.start_adapter)
    return {ADAPTER: digest}


def _check_unchanged(source: Path, folder: Path, digest: str) -> None:
    if adapter_digest(folder) != digest:
        raise UserError(f"model.adapter={source} was changed while it was loaded: give the same command again")


def kept_start(run: Run, config: Config) -> Path | None:
    """The run's copy of its start, once its digest is the record's; None if the run has none.

    Raises:
        UserError: it is gone, or another one.
    """
    if config.model.adapter is None:
        return None
    way_out = f"put the adapter that the run began with (model.adapter={config.model.adapter}) there again"
    if not run.start_adapter.is_dir():
        raise UserError(f"{run.start_adapter} is gone: {way_out}")
    if adapter_digest(run.start_adapter) != run.record().get(ADAPTER):
        raise UserError(f"{run.start_adapter} is not the adapter in the run's record: {way_out}")
    return run.start_adapter
