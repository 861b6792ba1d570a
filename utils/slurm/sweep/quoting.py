"""Overrides as text: quoted once for Hydra, once for the shell, with environment variables left to the node.

``$NAME`` and ``${NAME:-default}`` with capital letters are environment variables, expanded where the job runs.
Everything else that begins with ``$`` (``${seed}``, ``${oc.env:X}``) is OmegaConf's.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

# A default must not hold what would end the quotes it stands in.
ENVIRONMENT = re.compile(r"""\$(?:([A-Z_][A-Z0-9_]*)|\{([A-Z_][A-Z0-9_]*)(?::-([^{}'"`$\\]*))?\})""")
_PLAIN = re.compile(r"[A-Za-z_/][\w/.+@-]*", re.ASCII)
_HYDRA_WORDS = {"null", "true", "false", "nan", "inf"}
_SHELL_PLAIN = re.compile(r"[\w%+,./:=@-]+", re.ASCII)


def hydra_value(value: Any) -> str:
    """``value`` in Hydra's override grammar: reading it back gives ``value``.

    A text that is one environment variable and nothing else is left bare, so that Hydra reads what the node
    puts there (a number, null, a path); any other text stays a text.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(hydra_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra_value(str(key))}:{hydra_value(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if ENVIRONMENT.fullmatch(text) or (_PLAIN.fullmatch(text) and text.lower() not in _HYDRA_WORDS):
        return text
    # In Hydra's quotes a backslash is itself, except in a row of them that ends at a quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def shell_word(text: str) -> str:
    """``text`` as one word of a shell command; only environment variables in it are expanded."""
    if _SHELL_PLAIN.fullmatch(text):
        return text
    if not ENVIRONMENT.search(text):
        return shlex.quote(text)
    parts, position = [], 0
    for match in ENVIRONMENT.finditer(text):
        parts += [re.sub(r'([\\"$`])', r"\\\1", text[position : match.start()]), match[0]]
        position = match.end()
    parts.append(re.sub(r'([\\"$`])', r"\\\1", text[position:]))
    return '"' + "".join(parts) + '"'


def override_word(key: str, value: Any) -> str:
    """``key=value`` as one word of a shell command that starts a Hydra application."""
    return shell_word(f"{key}={hydra_value(value)}")


def expand_environment(text: str) -> str:
    """``text`` with its environment variables replaced on this machine. Raises KeyError with an unset name."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name) or match[3]
        if found is None:
            raise KeyError(name)
        return found

    return ENVIRONMENT.sub(value, text)
