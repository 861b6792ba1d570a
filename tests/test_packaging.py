"""What pyproject.toml, the requirements files, constraints.txt and the pages say of versions agrees."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lines(name: str) -> list[str]:
    """The lines of a requirements file without comments."""
    found = (re.sub(r"\s*#.*", "", line) for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in found if line]


def test_the_requirements_files_agree_with_the_project() -> None:
    assert set(PROJECT["dependencies"]) <= set(lines("requirements.txt"))
    for path in ROOT.glob("requirements-*.txt"):
        extra = path.stem.removeprefix("requirements-")
        own = [line for line in lines(path.name) if not line.startswith("-r ")]
        assert own == PROJECT["optional-dependencies"][extra], path.name


def test_the_extras_ask_for_one_version_of_a_package() -> None:
    wanted: dict[str, set[str]] = {}
    extras = PROJECT["optional-dependencies"].values()
    for text in [*lines("requirements.txt"), *(text for extra in extras for text in extra)]:
        wanted.setdefault(Requirement(text).name, set()).add(text)
    assert not {name: texts for name, texts in wanted.items() if len(texts) > 1}


def test_the_constraints_are_versions_that_the_requirements_allow() -> None:
    exact = {}
    for text in lines("constraints.txt"):
        pin = Requirement(text)
        (version,) = pin.specifier
        assert version.operator == "==" and "+" not in version.version, text
        exact[pin.name.lower().replace("_", "-")] = version.version
    for text in [*lines("requirements.txt"), *PROJECT["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(exact[wanted.name.lower().replace("_", "-")]), text


def test_the_versions_of_python_are_those_that_the_readme_names() -> None:
    tested = [kind.rpartition(" ")[2] for kind in PROJECT["classifiers"] if "Python ::" in kind]
    named = re.search(r"Python ≥ ([\d.]+) \(tested on ([^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert named is not None and re.findall(r"[\d.]+", named[2]) == tested
    assert PROJECT["requires-python"] == f">={named[1]}" == f">={tested[0]}"


def test_the_package_page_needs_no_other_file() -> None:
    """The wheel's page is read outside the repository, so that a relative link or image would be broken there."""
    page = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    assert not re.findall(r"\]\((?!https?://)[^)]*\)", page)
