"""Damage to files, as disks, editors, spreadsheets and scripts do it, as hypothesis strategies."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

PIECES = (
    b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xe2\x80\xa8",
    b"\xc2\xa0", b"\xc2\x85", "😀".encode(), b"{", b"}", b"[", b"]", b":", b"- ", b"&a *a", b"null", b"NaN",
    b"1e999", b"-1", b"../../x", b"${oc.env:HOME}", b"!!python/object/apply:os.system [touch canary]",
    b"\n\n\n", b"\\ud83d", b"\x1b[2J", b"%", b"'", b"x" * 70_000, b"[" * 2000, b"9" * 5000,
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 3.5, 1e308, float("nan"), float("inf"), 10**400, "", " ", "x" * 5000, "../../../x",
    "/etc/passwd", "a\nb", "\x1b[31m", "\u2028", "</script>", "\\input{x}|&%$", "nan", "1e-3", [], {}, ["x", None],
)  # fmt: skip
ENCODINGS = ("latin1", "utf-16", "utf-32", "cp1252")
Instead = bytes | Path | Callable[[Path], object] | None  # a file's content, a link's target, what makes it, or nothing


UNREADABLE: dict[str, Instead] = {
    "folder": os.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "half": b'{"status": "fini',
    "latin1": "é: [".encode("latin1"),
}


def replace(path: Path, what: Instead) -> None:
    """Put something in the place of a file or folder, and write through no link: others may link to the same file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif isinstance(what, Path):
        path.symlink_to(what)
    elif what is not None:
        what(path)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes with one thing wrong with them."""
    at, count, bit = draw(st.integers(0, len(content))), draw(st.integers(1, 200)), draw(st.integers(0, 7))
    before, after = content[:at], content[at:]
    kinds = {
        "truncate": lambda: before,
        "empty": lambda: b"",
        "flip": lambda: before + bytes(byte ^ 1 << bit for byte in after[:1]) + after[1:],
        "delete": lambda: before + after[count:],
        "double": lambda: before + content[max(at - count, 0) :],
        "swap": lambda: b"\n".join(draw(st.permutations(content.split(b"\n")))),
        "encode": lambda: content.decode(errors="replace").encode(draw(st.sampled_from(ENCODINGS)), errors="replace"),
        "insert": lambda: before + draw(st.sampled_from(PIECES)) + after,
    }
    return kinds[draw(st.sampled_from([*kinds, "insert", "insert"]))]()


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """A JSON or YAML document with one value replaced, one key removed, renamed or added, somewhere in it."""
    document = node = copy.deepcopy(document)
    while True:
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 3))):
            break
        node = node[key]
    kind, value = draw(st.sampled_from(("replace", "replace", "remove", "add"))), draw(st.sampled_from(VALUES))
    if kind == "replace":
        node[key] = value
    elif kind == "remove":
        del node[key]
    elif isinstance(node, dict):
        node[f"{key}_"] = node.pop(key)
    else:
        node.append(value)
    return document
