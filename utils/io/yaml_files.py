"""Read YAML as people do: ``1e-3`` is a number, ``12:00:00`` a text, and a key given twice is an error.

A file from elsewhere must not exhaust the memory: a few lines such as ``a: &a [x, x], b: &b [*a, *a]`` can stand for
more than any memory holds. So the size of a file with its aliases written out is limited, and so is its nesting.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from utils.errors import UserError
from utils.io.files import read_text

LARGEST = 4 << 20  # bytes of a file, and characters with aliases written out
DEEPEST = 30  # levels of nesting: a configuration has four, a sweep file six
_NODE = 10  # characters that a value counts besides its own
_LONGEST_INT = 400  # digits; larger than any float

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema (no base-60 numbers, no yes/no, no dates)."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._extents: dict[yaml.Node, tuple[int, int]] = {}  # of each complete node: characters and levels

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Raises ComposerError if it is too deep, too large or contains itself."""
        mark = self.peek_event().start_mark
        alias = self.check_event(yaml.AliasEvent)
        if self._level >= DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST} levels", mark)
        self._level += 1
        node: Any = super().compose_node(parent, index)
        self._level -= 1
        if not alias:
            self._extents[node] = _extent(node, self._extents)
        elif node not in self._extents:
            raise yaml.composer.ComposerError(None, None, "an alias stands within what it names", mark)
        size, levels = self._extents[node]
        if size > LARGEST or self._level + levels > DEEPEST:
            limits = f"more than {LARGEST:,} characters or {DEEPEST} levels with aliases written out"
            raise yaml.composer.ComposerError(None, None, limits, mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not a text", mark)
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is defined twice, first in line {lines[key]}", key_node.start_mark
                )
            lines[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _extent(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
    """The characters and levels of a node, from those of its parts in ``known``."""
    if isinstance(node, yaml.ScalarNode):
        return _NODE + len(node.value), 1
    pairs = isinstance(node, yaml.MappingNode)
    parts = [known[part] for entry in node.value for part in (entry if pairs else (entry,))]
    return _NODE + sum(size for size, _ in parts), 1 + max((levels for _, levels in parts), default=0)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > _LONGEST_INT:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    return int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan").replace(".NaN", "nan"))


_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), [*"~nN", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), [*"tTfF"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), [*"-+0123456789"])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.\d+|(?:0|[1-9]\d*)(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.inf|\.nan|\.NaN)$", re.ASCII),
    [*"-+.0123456789"],
)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml(path: Path) -> Any:
    """The document in ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is unreadable, not YAML, gives a key twice, or is larger or deeper than any that people
            write; names the line.
    """
    text = read_text(path, LARGEST)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # the last three: "!!int x" and its like
        raise UserError(f"{path} cannot be read as YAML: {error}") from None


def dotted(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(dotted(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
