"""The plan of the house, read from its imports, and the sizes that keep its parts readable."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The table of rooms in docs/architecture.md, turned round: a room of utils/ may import those before it.
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def table(head: str) -> list[list[str]]:
    """The rooms or files of each row of a table on that page, from the bottom."""
    rows = PAGE.split(f"| {head} |")[1].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`(\w+)(?:/|\.py)`", row.split("|")[1]) for row in rows][::-1]


ROOMS = [room for row in table("room, from the top") for room in row[::-1]]
ROSA = {name: level for level, row in enumerate(table("file")) for name in row}
ABOVE = {"scripts", "studies", "benchmarks", "tests", "train", "eval", "compile_results", "figures", "jobrunner"}
OF_ROSA = {"torch", "transformers", "safetensors", "peft"}  # peft in integrations/, where it is optional

# Lines that a file, an entry and a function have at most.
FILE, ENTRY, FUNCTION = 500, 80, 60
# What was too long when the limits came, with its lines. An entry may only get smaller, and goes when it fits.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
REASON = "long because"  # begins the reason in the docstring of a function above the limit


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module of this repository."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sources("rosa", "utils")}


def imports(name: str) -> Iterator[str]:
    """The modules that a module imports, at its top and inside functions, without those for type checkers alone."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in MODULES else module


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield node
            yield from runtime_nodes(node)


IMPORTS = {name: set(imports(name)) for name in MODULES}


def room(name: str) -> str:
    return name.split(".")[1]


def test_the_adapters_know_nothing_of_the_experiment() -> None:
    import sys

    for name in (name for name in MODULES if name.split(".")[0] == "rosa"):
        outside = {other.split(".")[0] for other in IMPORTS[name]} - {"rosa"} - set(sys.stdlib_module_names)
        assert outside <= OF_ROSA, name
        assert "peft" not in outside or name.startswith("rosa.integrations."), name


def test_every_room_imports_only_rooms_below_it() -> None:
    assert {room(name) for name in MODULES if name.startswith("utils.")} == set(ROOMS)
    for name in (name for name in MODULES if name.startswith("utils.")):
        for other in IMPORTS[name]:
            assert other.split(".")[0] not in ABOVE, f"{name} imports {other}"
            if other.startswith("utils.") and room(other) != room(name):
                assert ROOMS.index(room(other)) < ROOMS.index(room(name)), f"{name} imports {other}, which is above it"


def test_the_library_imports_only_rows_below_or_the_same() -> None:
    own = {name: others for name, others in IMPORTS.items() if name.startswith("rosa.")}
    assert {room(name) for name in own} == set(ROSA)
    for name, others in own.items():
        for other in others & set(own):
            assert ROSA[room(other)] <= ROSA[room(name)], f"{name} imports {other}, which is above it"


def test_a_folder_says_what_is_in_it() -> None:
    """Its docstring names each file and folder; where files register themselves, only what they share."""
    for package in (path for path in MODULES.values() if path.name == "__init__.py"):
        text = package.read_text(encoding="utf-8")
        named = set(re.findall(r"\w+", ast.get_docstring(ast.parse(text)) or ""))
        inside = {path.stem for path in package.parent.iterdir() if path.suffix in (".py", ".sh") or path.is_dir()}
        inside -= {"__init__", "__main__", "__pycache__"}
        if "Registry(__name__" in text:
            inside = {name for name in inside if name.startswith("_") or (package.parent / name).is_dir()}
        assert inside <= named, f"{name_of(package)} does not name {inside - named}"


def test_the_page_names_files_that_exist() -> None:
    named = re.findall(r"`((?:utils|rosa|tests|configs)/[\w/.]+)`", PAGE)
    assert len(named) > 20 and not [path for path in named if not (ROOT / path).exists()]


def test_no_modules_import_each_other() -> None:
    """Not even through others, within a room or from inside functions."""
    own = {name: {other for other in IMPORTS[name] if other in MODULES and other != name} for name in MODULES}
    try:
        TopologicalSorter(own).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(error.args[1][::-1])) from None


def test_files_are_short() -> None:
    scripts = [*ROOT.glob("*.sh"), *(ROOT / "scripts").rglob("*.sh"), *(ROOT / "utils").rglob("*.sh"), ROOT / ".ci/run"]
    long = {}
    for path in [*sources("rosa", "utils", "scripts", "studies", "benchmarks", "tests"), *scripts]:
        name, lines = str(path.relative_to(ROOT)), len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE:
            long[name] = lines
    only_shrinks(long, LONG_FILES)


def test_entries_are_thin() -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= ENTRY, path.name


def test_functions_are_short_or_say_why_not() -> None:
    long = {}
    for path in [*sources("rosa", "utils", "scripts", "studies", "benchmarks", "tests"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION and REASON not in (ast.get_docstring(node) or "").lower():
                    long[f"{path.relative_to(ROOT)} {node.name}"] = lines
    only_shrinks(long, LONG_FUNCTIONS)


def only_shrinks(long: dict[str, int], known: dict[str, int]) -> None:
    """Whatever is above its limit is ``known`` and no longer than it was; whatever is known is still above it."""
    grown = {name: lines for name, lines in long.items() if lines > known.get(name, 0)}
    assert not grown, "above the limit"
    assert not known.keys() - long.keys(), "within the limit now, or gone: take it off the list"
