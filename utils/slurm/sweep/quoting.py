"""Write overrides as text, quoted first for Hydra and then for the shell.

``$NAME`` and ``${NAME:-default}`` in capital letters are environment variables, which the node expands when the job
runs. Everything else that begins with ``$`` (``${seed}``, ``${oc.env:X}``) belongs to OmegaConf.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

# A default must not contain a character that would end the quotes around it.
ENVIRONMENT = re.compile(r"""\$(?:([A-Z_][A-Z0-9_]*)|\{([A-Z_][A-Z0-9_]*)(?::-([^{}'"`$\\]*))?\})""")
_PLAIN = re.compile(r"[A-Za-z_/][\w/.+@-]*", re.ASCII)
_HYDRA_WORDS = {"null", "true", "false", "nan", "inf"}
_SHELL_PLAIN = re.compile(r"[\w%+,./:=@-]+", re.ASCII)


def hydra_value(value: Any) -> str:
    """``value`` in Hydra's override grammar, so that Hydra reads ``value`` again.

    A text that is only an environment variable gets no quotes, so that Hydra reads what the node puts there (a number,
    null, a path). Any other text stays a text.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra_value(str(key))}:{hydra_value(part)}" for key, part in value.items()) + "}"
    text = str(value)
    if ENVIRONMENT.fullmatch(text) or (_PLAIN.fullmatch(text) and text.lower() not in _HYDRA_WORDS):
        return text
    # Within Hydra's quotes a backslash is literal, except in a row of backslashes that ends at a quote.
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


def fill_places(command: str, values: dict[str, Any]) -> tuple[str, set[str]]:
    """``command`` with each ``{key}`` of ``values`` replaced by its value as one word of the shell, and those keys.

    For programs that take no ``key=value`` of Hydra. ``${key}`` stays.
    """
    filled: set[str] = set()

    def word(match: re.Match[str]) -> str:
        key = match[1]
        if key not in values:
            return match[0]
        filled.add(key)
        return shell_word(values[key] if isinstance(values[key], str) else hydra_value(values[key]))

    return re.sub(r"(?<!\$)\{([^{}\s]+)\}", word, command), filled


def expand_environment(text: str) -> str:
    """``text`` with this machine's environment variables expanded. Raises KeyError with the name of an unset one."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name) or match[3]
        if found is None:
            raise KeyError(name)
        return found

    return ENVIRONMENT.sub(value, text)
