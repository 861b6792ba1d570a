"""Reading from the Hugging Face hub, with one clear message where there is no network.

Imports of the hub's libraries wait until they are needed, and until ``go_offline_without_network`` was called.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from utils.errors import UserError, short_reason

WAYS_OUT = (
    "Without network: set {path_key} to a local folder, fill the cache on a machine with network ({cache_hint}), "
    "or try the bundled pair: dataset.name=e2e_sample model.name=tiny."
)
PATIENCE = 3.0  # seconds for the hub's address


def go_offline_without_network() -> None:
    """Put the hub's libraries into offline mode if the hub's address cannot be had.

    They would otherwise retry each file for half a minute before they turn to their cache. They read the
    setting when they are imported, so this comes first. Behind a proxy nothing is concluded from addresses.
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


def load_split(
    repository: str, split: str, cache: str | None, *, revision: str | None = None, config: str | None = None
) -> Any:
    """A split of a hub data set; a cache filled earlier serves without network.

    Raises:
        UserError: neither the hub nor the cache has it.
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
