"""The page of every public name of the library, from its signatures and docstrings.

``python -m scripts.docs.api`` writes docs/api.md. It needs the package peft; what is peft's own is not on the page.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from inspect import Parameter, Signature
from types import FunctionType
from typing import Any

from scripts.docs.collect import ROOT
from scripts.docs.keys import cell
from utils.io.files import write_text

PAGE = ROOT / "docs" / "api.md"
GROUPS = {  # heading: a module, and its names in the order of the page
    "Adapt a model": ("rosa", "inject start_adapters train_only adapter_layers parameter_report ParameterReport"),
    "Settings": (
        "rosa",
        "AdapterConfig LowRankConfig RosaConfig LoraConfig DoraConfig ReloraConfig IA3Config BitFitConfig",
    ),
    "Train": ("rosa", "parameter_groups Resampler resample"),
    "Use the model": ("rosa", "merge unmerge merged unwrap disabled"),
    "Save and load": ("rosa", "save_adapter load_adapter export"),
    "Write a method": ("rosa", "register AdapterLayer LowRankLayer AdapterError"),
    "With PEFT": ("rosa.integrations.peft", "RosaConfig RosaModel save_as_lora to_peft_lora"),
    "With the Trainer": ("rosa.integrations.trainer", "ResampleCallback keep_what_changes"),
}
NAMES = [f"{module}.{name}" for module, names in GROUPS.values() for name in names.split()]
SECTION = re.compile(r"^(Args|Attributes):\n((?: +.*\n?)+)", re.M)
ENTRY = re.compile(r"^([\w, ]+): (.*(?:\n +.*)*)", re.M)  # of a section: one name or more, and their meaning

HEAD = """# Every name of the library

Made by `python -m scripts.docs.api` from the docstrings. `help(rosa.inject)` shows all of one, with details and errors.
[From PEFT, Trainer or accelerate](peft.md) has examples, and [Contributing](../CONTRIBUTING.md) says how to write a
method. A layer computes x W + b from m inputs to n outputs; its pair of rank R is A (m, R) and B (R, n).
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for heading, (module, names) in GROUPS.items():
        lines += [f"## {heading}", ""]
        for name in names.split():
            lines += _section(f"{module}.{name}", getattr(importlib.import_module(module), name))
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, found: Any) -> Iterator[str]:
    """The lines on one name: its call, what it is, its fields as a table or its arguments, and its methods."""
    doc, is_config = inspect.getdoc(found) or "", dataclasses.is_dataclass(found)
    call, defaults = _call(found)
    yield from (f"### `{name}`", "")
    if call:  # as text, because ruff formats Python on pages
        wrapped = textwrap.fill(name + call, 110, subsequent_indent="    ", break_on_hyphens=False)
        yield from ("```text", wrapped, "```", "")
    for paragraph in doc.partition("\n\nAttributes:")[0].split("\n\n")[: None if is_config else 1]:
        yield from (_text(paragraph, found), "")
    for title, text in SECTION.findall(doc):
        entries = [(one, said) for names, said in ENTRY.findall(textwrap.dedent(text)) for one in names.split(", ")]
        if is_config:
            yield from ("| field | default | meaning |", "| --- | --- | --- |")
            yield from (f"| `{one}` | `{defaults[one]}` | {_text(said, found)} |" for one, said in entries)
        else:
            yield from (f"{title.replace('Args', 'Arguments')}:", "")
            yield from (f"- `{one}`: {_text(said, found)}" for one, said in entries)
        yield ""
    if methods := [] if is_config or not inspect.isclass(found) else [*_methods(found)]:
        yield from ("Methods and properties:", "", *methods, "")


def _methods(found: type) -> Iterator[str]:
    """A line on each method and property that has a docstring."""
    for name, member in vars(found).items():
        if not name.startswith("_") and isinstance(member, FunctionType | classmethod | property) and member.__doc__:
            call = "" if isinstance(member, property) else _call(getattr(found, name))[0]
            first, _, _ = inspect.cleandoc(member.__doc__).partition("\n\n")
            yield f"- `{name}{call}`: {_text(first, found)}"


def _call(found: Any) -> tuple[str, dict[str, str]]:
    """Its arguments without types, and the default of each; none if ``__init__`` is another library's."""
    if inspect.isclass(found) and "__init__" not in vars(found):
        return "", {}
    arguments = inspect.signature(found.__init__ if inspect.isclass(found) else found).parameters
    kept = [one.replace(annotation=Parameter.empty) for name, one in arguments.items() if name != "self"]
    if dataclasses.is_dataclass(found):  # inherited fields may be those of peft; a list has a factory
        ours = {name for one in found.__mro__ if one.__module__.startswith("rosa") for name in one.__annotations__}
        made = {f.name: f.default_factory() for f in dataclasses.fields(found) if callable(f.default_factory)}
        kept = [one.replace(default=made.get(one.name, one.default)) for one in kept if one.name in ours]
    defaults = {one.name: str(one).partition("=")[2].replace("'", '"') for one in kept}
    return str(Signature(kept)).replace("'", '"'), defaults


def _text(text: str, found: Any) -> str:
    """A text of a docstring as a line of Markdown, where other names of the page are links."""
    pieces = " ".join(text.split()).split("``")  # code at odd places
    return "".join(_code(piece, found) if i % 2 else cell(piece) for i, piece in enumerate(pieces))


def _code(code: str, found: Any) -> str:
    """Code, and a link if it is a name of the page, but not the name or a member of what is described."""
    name = next((name for name in NAMES if code in (name, name.rpartition(".")[2])), "")
    is_own = code in (found.__name__, *vars(found))
    return f"[`{code}`](#{name.replace('.', '').lower()})" if name and not is_own else f"`{code}`"


if __name__ == "__main__":
    write_text(PAGE, page())
