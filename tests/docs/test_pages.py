"""The pages of the site: those that are generated are current, links lead somewhere, and named tests exist."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import rosa
from scripts.docs import api, draw_resample, keys
from scripts.docs.collect import ROOT, collect, pages, place, with_site_links
from tests.records import csv_of, write_run
from utils.errors import UserError
from utils.metrics import metrics
from utils.results.columns import all_columns
from utils.tables import compile_results

TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
GENERATOR = all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "latex2mathml"))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_page_of_keys_is_current() -> None:
    assert text_of("docs/keys.md") == keys.page(text_of("configs/train.yaml")), "run python -m scripts.docs.keys"


def test_the_page_of_commands_explains_every_column_of_results(tmp_path: Path) -> None:
    for method in ("none", "lora", "rosa"):
        scores = {name: 0.5 for name in metrics()}
        write_run(tmp_path, method=method, rank=4, loss=len(method), scores=scores)
    compile_results([tmp_path], columns=[*all_columns([])], formats=["csv"])
    explained = set(re.findall(r"`(\w+)`", text_of("docs/commands.md")))
    explained |= {f"{split}_perplexity_{part}" for split in ("val", "test") for part in ("target", "all")}
    names = {re.sub("_(mean|std|n|delta)$", "", name) for name in csv_of(tmp_path) if "." not in name}
    assert {"gap_closed_low", "baseline", *all_columns([])} <= names <= explained


def test_the_page_of_keys_has_every_key_with_its_default() -> None:
    shown = dict(re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| [^|]", text_of("docs/keys.md"), re.M))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("train"))
    assert OmegaConf.to_container(OmegaConf.from_dotlist([f"{name}={shown[name]}" for name in shown])) == {
        name: values for name, values in without_empty(composed).items() if name != "hydra"
    }


def without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """The values without groups that have no keys: methods without settings."""
    kept = {name: without_empty(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: value for name, value in kept.items() if value != {}}


def test_the_page_of_names_is_current() -> None:
    pytest.importorskip("peft")
    assert text_of("docs/api.md") == api.page(), "run python -m scripts.docs.api"


def test_the_page_of_names_has_every_public_name_once() -> None:
    pytest.importorskip("peft")
    modules = [importlib.import_module(f"rosa.integrations.{name}") for name in ("peft", "trainer")]
    public = [f"{module.__name__}.{name}" for module in (rosa, *modules) for name in names_of(module)]
    assert sorted(re.findall(r"^### `(.*)`$", text_of("docs/api.md"), re.M)) == sorted(public)


def names_of(module: ModuleType) -> list[str]:
    """Its ``__all__``, else what it defines without an underscore."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", None) or [name for name in own if not name.startswith("_")]


def test_links_within_the_page_of_names_lead_somewhere() -> None:
    text = text_of("docs/api.md")
    places = {name.replace(".", "").lower() for name in re.findall(r"^### `(.*)`$", text, re.M)}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= places


def test_the_picture_is_current_and_well_formed() -> None:
    drawn = draw_resample.picture()
    assert text_of("docs/resample.svg") == drawn, "run python -m scripts.docs.draw_resample"
    ElementTree.fromstring(drawn)


def test_a_link_leads_to_its_place_in_the_site() -> None:
    text = (
        "[a](method.md#split) [b](../CONTRIBUTING.md) [c](../configs/train.yaml) [d](https://x.org/y) [e](#f) `[g](h)`"
    )
    assert with_site_links(text, "docs/index.md") == (
        "[a](method.md#split) [b](CONTRIBUTING.md) [c](configs/train.yaml) [d](https://x.org/y) [e](#f) `[g](h)`",
        {"configs/train.yaml"},
    )
    text, files = with_site_links("[a](../../docs/method.md) [b](../) [c](sweep.yaml)", "studies/capacity/README.md")
    assert text == "[a](../../method.md) [b](../index.md) [c](sweep.yaml)" and files == {"studies/capacity/sweep.yaml"}


@pytest.mark.parametrize("target", ["nowhere.md", "../README.md", "../rosa", "../rosa/nothing.py"])
def test_a_link_that_the_site_cannot_have_is_refused(target: str) -> None:
    with pytest.raises(UserError, match="neither a page of the site nor a file"):
        with_site_links(f"[a]({target})", "docs/index.md")


@pytest.mark.parametrize("page", pages())
def test_every_page_can_be_gathered(page: str) -> None:
    with_site_links(text_of(page), page)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!\w+:)([^)#\s]+)", text_of("README.md"))
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_three_lines_turn_a_peft_script_into_rosa() -> None:
    """Those that the page shows are the difference between the two example scripts."""
    (shown,) = re.findall(r"```diff\n(.*?)```", text_of("docs/peft.md"), re.S)
    scripts = [text_of(f"examples/{name}_with_peft.py").partition("import")[2] for name in ("lora", "rosa")]
    before, after = ({line for line in text.splitlines() if line.strip()} for text in scripts)
    for sign, lines in (("-", before - after), ("+", after - before)):
        assert {line[1:] for line in shown.splitlines() if line.startswith(sign)} == lines
    assert len(after - before) == 3


def test_the_navigation_has_every_page_once() -> None:
    entries = yaml.safe_load(text_of("mkdocs.yml"))["nav"]
    listed = [page for entry in entries for page in ([entry] if isinstance(entry, str) else next(iter(entry.values())))]
    assert sorted(listed) == sorted(place(page) for page in pages())


@functools.cache
def functions_in(file: str) -> set[str]:
    nodes = ast.walk(ast.parse(text_of(file)))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", [page for page in pages() if TEST.search(text_of(page))])
def test_named_tests_exist(page: str) -> None:
    for file, name in TEST.findall(text_of(page)):
        assert (ROOT / file).is_file() and name in functions_in(file), f"{file}::{name}"


def test_every_yes_of_ours_names_its_test() -> None:
    rows = [row.split(" | ") for row in text_of("docs/features.md").splitlines() if row.startswith("| ")]
    ours = [row for row in rows if row[1].startswith("yes")]
    assert len(ours) > 20
    assert not [row[0] for row in ours if not TEST.search(row[-1])]


def test_the_generator_is_the_extra_of_the_project() -> None:
    extra = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]["docs"]
    lines = [line.partition("  #")[0] for line in text_of("requirements-docs.txt").splitlines()]
    assert [line for line in lines if not line.startswith("#")] == extra


@pytest.mark.skipif(not GENERATOR, reason="the generator is not installed: pip install -r requirements-docs.txt")
def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    collect(tmp_path / "pages")
    (tmp_path / "mkdocs.yml").write_text(text_of("mkdocs.yml").replace("site/", ""))
    built = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(tmp_path / "mkdocs.yml"),
    ]
    result = subprocess.run(built, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "html" / "method.html").read_text(encoding="utf-8")
    assert "<math" in page and "```" not in page
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?https?:', page)  # nothing from elsewhere
