"""A data set, a metric and a figure are one file each: from training to the table and the figure, nothing else is
edited but a line of configs/train.yaml."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from sacrebleu import corpus_chrf

import utils.data
import utils.metrics
import utils.plots
from tests.conftest import ROOT
from tests.contributing import example
from tests.records import csv_of, markdown_rows, row_of
from utils.config.settings import parse_config
from utils.evaluation import Options, evaluate_runs
from utils.generation.decoding import Decoding
from utils.metrics.scoring.score_runs import main as score_runs
from utils.plots import draw_figures, plots
from utils.plots._data import load_plot_data
from utils.results.compare import compare_runs
from utils.runs import Run, find_runs
from utils.tables import compile_results
from utils.training.launch import train_all

FILES = ((utils.data, "_SOURCES", "webnlg"), (utils.metrics, "_METRICS", "chrf"), (utils.plots, "_PLOTS", "bars"))
LISTS = (utils.data.sources, utils.metrics.metrics, utils.plots.plots)

HASHES = ("predictions_sha256", "raw_predictions_sha256", "references_sha256")


@dataclass
class Chain:
    """What the commands made of two runs, and what eval.sh and --compare printed."""

    runs: Path
    scored: str
    compared: str

    def run(self, method: str) -> Run:
        return next(run for run in find_runs([self.runs]) if run.record()["method"] == method)


@contextlib.contextmanager
def added(folder: Path) -> Iterator[None]:
    """A folder whose files stand beside those of each package, known for as long as the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for (package, registry, name), listed in zip(FILES, LISTS, strict=True):
            listed()  # registers what is there already, outside the copy
            text = example(f"{package.__name__.replace('.', '/')}/{name}.py")
            _add(patch, package, registry, folder / package.__name__, name, text)
        yield
    for package, _, name in FILES:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


def _add(patch: pytest.MonkeyPatch, package: ModuleType, registry: str, folder: Path, name: str, text: str) -> None:
    folder.mkdir()
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    patch.setattr(package, "__path__", [*package.__path__, str(folder)])
    patch.setattr(package, registry, copy.deepcopy(getattr(package, registry)))


def write_data(folder: Path) -> None:
    folder.mkdir()
    for split, count in (("train", 16), ("validation", 4), ("test", 6)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [
                (f"{split}{i} | food | Thai", f"{way} food is Thai.") for i in range(count) for way in ("The", "Its")
            ]
            csv.writer(file).writerows([("triples", "text"), *rows])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("one-file")
    runs = folder / "runs"
    write_data(folder / "data")
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("default.yaml"))
    page = folder / "configs" / "train.yaml"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("e2e_sample (bundled)", "e2e_sample (bundled) | webnlg"), encoding="utf-8")
    common = [f"model.name={small_model}", f"dataset.path={folder / 'data'}", "dataset.name=webnlg",
              f"output.path={runs}", "train.batch_size=16", "train.device=cpu", "train.scheduler=constant",
              "logging.samples=0"]  # fmt: skip
    with added(folder):
        for method, more in (
            ("none", ["train.epochs=8", "train.lr=1e-2"]),
            ("lora", ["train.epochs=8", "train.lr=1e-6"]),
        ):
            overrides = [*common, f"fnmodel.name={method}", *more]
            with initialize_config_dir(str(page.parent), version_base="1.3"):
                config = parse_config(compose("train", overrides=overrides))
            train_all(config, overrides)
        assert evaluate_runs([str(runs)], Options(decoding=Decoding(num_beams=1, max_new_tokens=6), device="cpu")) == 0
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert score_runs([str(runs)]) == 0
        compile_results([runs])
        result = Chain(runs, printed.getvalue(), "")
        result.compared = compare_runs(result.run("none").path, result.run("lora").path)
        yield result


def test_a_data_set_has_the_scores_that_it_lists(chain: Chain) -> None:
    scores = chain.run("none").scores()
    assert scores and scores.keys() == {"BLEU", "chrF", "length_ratio", "items", *HASHES}
    first, *rows = chain.scored.splitlines()
    assert first.split() == ["run", "split", "BLEU", "chrF", "length_ratio"] and len(rows) == 2
    assert list(markdown_rows(chain.runs, "webnlg")[0])[-6:-3] == ["BLEU", "chrF", "length ratio"]
    assert [line.split()[0] for line in chain.compared.splitlines()[5:]] == ["BLEU", "chrF", "length_ratio"]


def test_a_metric_is_scored_printed_tabulated_and_compared(chain: Chain) -> None:
    found = {}
    for method in ("none", "lora"):
        run = chain.run(method)
        references = [block.splitlines() for block in run.references().read_text().split("\n\n")]
        streams = [list(stream) for stream in zip(*references, strict=True)]
        found[method] = corpus_chrf(run.predictions().read_text().splitlines(), streams).score
        assert run.scores()["chrF"] == pytest.approx(found[method])
        assert any(f"  {found[method]:.2f}  " in line for line in chain.scored.splitlines())
    assert found["none"] > found["lora"] + 1  # else nothing below would show
    table = markdown_rows(chain.runs, "webnlg")
    assert [row["chrF"] for row in table] == [f"**{found['none']:.2f}**", f"{found['lora']:.2f}"]
    text = (chain.runs / "webnlg" / "results.md").read_text(encoding="utf-8")
    assert "chrF ↑" in text and "Δ chrF ↑" in text and "chrF from 0 to 100." in text
    row = row_of(csv_of(chain.runs, "webnlg"), method="lora")
    assert row.chrF_delta == pytest.approx(found["lora"] - found["none"])
    line = next(line for line in chain.compared.splitlines() if line.startswith("chrF"))
    assert line.split()[1:3] == [f"{found['none']:.2f}", f"{found['lora']:.2f}"]


def test_a_metric_is_shown_of_each_data_set_that_lists_none(chain: Chain) -> None:
    assert utils.metrics.main_scores(utils.data.source_type("e2e").metrics)[-2:] == ("SER", "chrF")
    assert "chrF" in utils.metrics.applicable(None, utils.data.source_type("e2e").metrics)
    assert "chrF" not in utils.metrics.main_scores(utils.data.source_type("eli5").metrics)


def test_an_axis_says_which_way_a_metric_is_better(chain: Chain) -> None:
    for figure in ("parameters", "bars"):
        drawn = plots()[figure].draw(load_plot_data(chain.runs / "webnlg", "chrF")[0])
        assert drawn.axes[0].get_ylabel() == "chrF (higher is better)"


def test_a_figure_is_drawn(chain: Chain, tmp_path: Path) -> None:
    written = draw_figures(chain.runs / "webnlg", tmp_path, only=["bars"], metric="chrF")
    assert [path.name for path in written] == ["bars-chrF.png", "bars-chrF.pdf"]
