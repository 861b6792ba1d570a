"""Read from the Hugging Face hub, with one clear message if there is no network.

The hub's libraries are imported when they are needed, after ``go_offline_without_network`` was called.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils.errors import UserError, short_reason

WAYS_OUT = (
    "Without network: set {path_key} to a local folder, fill the cache on a machine with network ({cache_hint}), "
    "or try the bundled pair: dataset.name=e2e_sample model.name=tiny."
)
PATIENCE = 3.0  # seconds to wait for the hub's address


def go_offline_without_network() -> None:
    """Put the hub's libraries into offline mode if the hub's address cannot be resolved.

    Otherwise they retry each file for half a minute before they read their cache. Call this before they are imported,
    since they read the setting then. Behind a proxy it does nothing, because addresses say nothing there.
    """
    proxies = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if "HF_HUB_OFFLINE" in os.environ or any(os.environ.get(name) for name in proxies):
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    found = threading.Event()

    def look_up() -> None:
        try:
            socket.getaddrinfo(host, 443)
            found.set()
        except OSError:
            pass

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not found.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(f"{host} is not found: working offline (HF_HUB_OFFLINE=0 tries all the same)", file=sys.stderr)


def cached_folder(repository: str, file: str) -> Path | None:
    """The folder of the hub's cache with a model's current files, None if ``file`` is not among them."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file)
    return Path(path).parent if isinstance(path, str) else None


def load_split(
    repository: str, split: str, cache: str | None, *, revision: str | None = None, config: str | None = None
) -> Any:
    """A split of a data set on the hub, or in a cache that was filled earlier.

    Raises:
        UserError: it can be read neither from the hub nor from the cache.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(repository, config, split=split, revision=revision, cache_dir=cache)
    except Exception as error:
        ways = WAYS_OUT.format(path_key="dataset.path", cache_hint="dataset.cache=DIR there and here")
        why = f"{type(error).__name__}: {short_reason(error).rstrip('.')}"
        raise UserError(f"the hub data set {repository} ({split}) cannot be loaded: {why}. {ways}") from None
