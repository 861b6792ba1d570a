"""Damage to files, as disks, editors, spreadsheets, scripts and attackers do it."""

from __future__ import annotations

import copy
import random
from typing import Any

PIECES = (
    b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xe2\x80\xa8",
    b"\xc2\xa0", b"\xc2\x85", "😀".encode(), b"{", b"}", b"[", b"]", b":", b"- ", b"&a *a", b"null", b"NaN",
    b"1e999", b"-1", b"../../x", b"${oc.env:HOME}", b"!!python/object/apply:os.system [touch canary]",
    b"\n\n\n", b"\\ud83d", b"\x1b[2J", b"%", b"'", b"x" * 70_000, b"[" * 2000, b"9" * 5000,
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 3.5, 1e308, float("nan"), float("inf"), 10**400, "", " ", "x" * 5000, "../../../x",
    "/etc/passwd", "a\nb", "\x1b[31m", "\u2028", "</script>", "\\input{x}|&%$", [], [[]], {}, {"a": {"b": []}},
    ["x", None],
    "nan", "1e-3",
)  # fmt: skip


def damaged(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """What was done, and the damaged content."""
    kind = chance.choice(
        ["truncate", "flip", "delete", "insert", "insert", "insert", "double", "swap", "encode", "empty"]
    )
    at = chance.randrange(len(content) + 1)
    if kind == "truncate":
        return kind, content[:at]
    if kind == "flip" and content:
        at = chance.randrange(len(content))
        return kind, content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if kind == "delete":
        return kind, content[:at] + content[at + chance.randint(1, 40) :]
    if kind == "double":
        return kind, content[:at] + content[max(at - chance.randint(1, 200), 0) :]
    if kind == "swap":
        lines = content.split(b"\n")
        chance.shuffle(lines)
        return kind, b"\n".join(lines)
    if kind == "encode":
        encoding = chance.choice(["latin1", "utf-16", "utf-32", "cp1252"])
        return f"encode {encoding}", content.decode(errors="replace").encode(encoding, errors="replace")
    if kind == "empty":
        return kind, b""
    piece = chance.choice(PIECES)
    return f"insert {piece[:20]!r} at {at}", content[:at] + piece + content[at:]


def deranged(document: Any, chance: random.Random) -> tuple[str, Any]:
    """A JSON or YAML document with one value replaced, one key removed, renamed or added, somewhere in it."""
    document = copy.deepcopy(document)
    node, path = document, []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return f"{path} is empty", document
        key = chance.choice(keys)
        path.append(key)
        if isinstance(node[key], (dict, list)) and node[key] and chance.random() < 0.75:
            node = node[key]
            continue
        break
    kind = chance.random()
    if kind < 0.7:
        node[key] = value = copy.deepcopy(chance.choice(VALUES))
        return f"{path} = {str(value)[:30]!r}", document
    if kind < 0.85:
        del node[key]
        return f"{path} removed", document
    if isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
        return f"{path} renamed", document
    node.append(copy.deepcopy(chance.choice(VALUES)))
    return f"{path} lengthened", document
