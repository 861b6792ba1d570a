"""Figures: values read from the axes are compared with the records of the runs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

import utils.plots
from tests.records import write_run
from utils.errors import UserError
from utils.plots import NothingToDraw, draw_figures, plots
from utils.plots._data import load_plot_data
from utils.plots._style import add_title, save, style

ROOT = Path(__file__).parents[2]


def figure_of(name: str, folder: Path, metric: str | None = None, model: str = "gpt2") -> Figure:
    data = next(data for data in load_plot_data(folder, metric) if data.model == model)
    with style():
        return plots()[name].draw(data)


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of each labelled line of the first axes."""
    labelled = {}
    for container in figure.axes[0].containers:
        line = container.lines[0]
        labelled[str(container.get_label())] = (list(line.get_xdata()), list(line.get_ydata()))
    for line in figure.axes[0].lines:
        if not str(line.get_label()).startswith("_"):
            labelled[str(line.get_label())] = (list(line.get_xdata()), list(line.get_ydata()))
    return labelled


def error_bars(figure: Figure, label: str) -> list[float]:
    """Half the length of each error bar of the line ``label``."""
    container = next(c for c in figure.axes[0].containers if c.get_label() == label)
    return [(segment[1][1] - segment[0][1]) / 2 for segment in container.lines[2][0].get_segments()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_every_file_in_the_folder_is_a_registered_and_documented_figure() -> None:
    files = {path.stem for path in Path(utils.plots.__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    assert files == set(plots())
    done = subprocess.run(
        [sys.executable, "figures.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert all(f"  {plot.name}" in done.stdout and plot.about in done.stdout for plot in plots().values())


def test_validation_curves_are_means_over_seeds_with_a_band(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, validation=[2.0, 1.5, 1.0], epochs=3)
    write_run(tmp_path, seed=1, validation=[4.0, 1.5, 2.0], epochs=3)
    write_run(tmp_path, method="none", validation=[3.0, 2.0, 0.5], epochs=3)
    figure = figure_of("validation_curves", tmp_path)
    drawn = lines(figure)
    assert drawn["ROSA"] == ([1, 2, 3], [3.0, 1.5, 1.5])
    assert drawn["full fine-tuning"] == ([1, 2, 3], [3.0, 2.0, 0.5])
    (band,) = figure.axes[0].collections  # one seed has no band
    ys = {round(x): sorted(y for at, y in band.get_paths()[0].vertices if round(at) == round(x)) for x in (1, 2, 3)}
    assert ys[1][0] == pytest.approx(3 - math.sqrt(2)) and ys[1][-1] == pytest.approx(3 + math.sqrt(2))
    assert ys[2][0] == ys[2][-1] == 1.5
    assert texts(figure) == ["full fine-tuning", "ROSA"]
    assert figure.legends[0].get_title().get_text() == "rank ratio 0.05; band: ± 1 std, 2 seeds"


def test_training_curves_average_intervals_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    points = [f'{{"split": "train", "epoch": {i / 100}, "step": {i}, "loss": {i}}}' for i in range(1, 201)]
    (run / "metrics.jsonl").write_text("\n".join([*points, '{"split": "resample", "seconds": 1}']))
    x, y = lines(figure_of("training_curves", tmp_path))["ROSA"]
    assert len(x) == 50 and x[0] == pytest.approx(0.02) and x[-1] == pytest.approx(1.98)
    assert y[1] == pytest.approx((5 + 6 + 7 + 8) / 4)


def test_final_metric_against_parameters(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, method="none", seed=seed, scores={"BLEU": 0.70 + 0.02 * seed})
        for rank, bleu in ((0.1, 0.66), (0.0125, 0.60)):
            write_run(tmp_path, method="rosa", rank=rank, seed=seed, scores={"BLEU": bleu + 0.02 * seed})
    write_run(tmp_path, method="lora", scores={"absent": True})
    figure = figure_of("parameters", tmp_path, "BLEU")
    drawn = lines(figure)
    assert drawn["ROSA"][0] == [1_400_000, 11_300_000] and drawn["ROSA"][1] == pytest.approx([0.61, 0.67])
    assert error_bars(figure, "ROSA") == pytest.approx([0.02 / math.sqrt(2)] * 2)
    assert drawn["full fine-tuning"][1] == pytest.approx([0.71, 0.71])
    assert "LoRA" not in drawn  # not scored
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_ylabel() == "BLEU (higher is better)"


def test_default_metric_is_test_perplexity_or_else_validation_loss(tmp_path: Path) -> None:
    write_run(tmp_path / "a", loss=1.0)
    assert lines(figure_of("parameters", tmp_path / "a"))["ROSA"][1] == pytest.approx([math.exp(1.1)])
    write_run(tmp_path / "b", loss=1.0, evaluation={"absent": True}, scores={"absent": True})
    assert lines(figure_of("parameters", tmp_path / "b"))["ROSA"][1] == [1.0]


def test_the_untrained_model_is_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, method="none", epochs=0, loss=9.0, validation=[9.0])
    assert set(lines(figure_of("parameters", tmp_path))) == {"ROSA"}
    assert set(lines(figure_of("validation_curves", tmp_path))) == {"ROSA"}


def test_sampling_compares_equal_settings_only(tmp_path: Path) -> None:
    for rank, random, bottom in ((0.05, 1.0, 1.5), (0.1, 0.8, 1.2)):
        write_run(tmp_path, rank=rank, loss=random)
        write_run(tmp_path, rank=rank, loss=bottom, config={"fnmodel.rosa.sample_method": "bottom"})
    write_run(tmp_path, loss=0.1, config={"train.lr": 0.5})
    figure = figure_of("sampling", tmp_path, "val_loss")
    drawn = lines(figure)
    assert drawn["random"][1] == [1.0, 0.8] and drawn["bottom"][1] == [1.5, 1.2]
    assert drawn["random"][0] == drawn["bottom"][0] == [0, 1]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.05", "0.1"]


def test_sampling_compares_each_sample_method_at_the_rate_that_its_search_chose(tmp_path: Path) -> None:
    for sample, rank, rate, loss in (
        ("random", 4, 1e-3, 1.0), ("random", 8, 3e-3, 0.8), ("bottom", 4, 3e-3, 1.5), ("bottom", 8, 1e-2, 1.2),
    ):  # fmt: skip
        for trial in (True, False):
            config = {"train.lr": rate, "fnmodel.rosa.sample_method": sample, "output.search": trial}
            record = {"group": f"{sample}-{rank}"}
            write_run(tmp_path, rank=rank, seed=100 * trial, loss=loss, config=config, record=record)
    drawn = lines(figure_of("sampling", tmp_path, "val_loss"))
    assert drawn == {"random": ([0, 1], [1.0, 0.8]), "bottom": ([0, 1], [1.5, 1.2])}


def test_the_random_sample_method_is_shown_as_rosa(tmp_path: Path) -> None:
    write_run(tmp_path, loss=1.0)
    write_run(tmp_path, loss=0.5, config={"fnmodel.rosa.sample_method": "bottom"})
    (data,) = load_plot_data(tmp_path, "val_loss")
    with style():
        figure = plots()["parameters"].draw(data)
    assert lines(figure)["ROSA"][1] == [1.0]
    assert "sample_method=random" in " ".join(data.notes)


def test_cost_shows_mebibytes_and_minutes_of_one_hardware(tmp_path: Path) -> None:
    write_run(tmp_path, method="none")
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=2)
    write_run(tmp_path, method="lora", record={"hardware": {"name": "another"}})
    (data,) = load_plot_data(tmp_path)
    with style():
        figure = plots()["cost"].draw(data)
    memory, time = figure.axes
    assert [label.get_text() for label in memory.get_yticklabels()] == ["full fine-tuning", "ROSA"]
    assert [bar.get_width() for bar in memory.patches] == pytest.approx([15_000, 13_000])
    assert [bar.get_width() for bar in time.patches] == pytest.approx([10.0, 601 / 60, 8 / 60])
    assert [bar.get_x() for bar in time.patches] == pytest.approx([0, 0, 601 / 60])  # resampling follows training
    assert time.get_xlabel() == "training time\n(min)"
    assert [text.get_text() for text in time.texts] == ["10.0", "10.0 + 0.13"]
    assert any("another" in note for note in data.notes)


def test_runs_trained_on_different_tokens_are_compared_by_target_loss(tmp_path: Path) -> None:
    write_run(tmp_path, validation=[2.0, 1.0], epochs=2)
    write_run(tmp_path, method="lora", record={"loss_on": "all"}, config={"train.loss_on": "all"})
    figure = figure_of("validation_curves", tmp_path)
    assert figure.axes[0].get_ylabel() == "validation loss target (nats per token,\nlower is better)"
    with pytest.raises(NothingToDraw, match="different tokens"):
        figure_of("training_curves", tmp_path)
    with pytest.raises(UserError, match="val_loss_target"):
        load_plot_data(tmp_path, "val_loss")


@pytest.mark.parametrize(
    ("name", "message"),
    [("sampling", "sample_method"), ("cost", "time or memory"), ("validation_curves", "metrics.jsonl")],
)
def test_a_figure_without_data_says_what_is_missing(tmp_path: Path, name: str, message: str) -> None:
    run = write_run(tmp_path, record={"timings": {}})
    (run / "metrics.jsonl").unlink()
    with pytest.raises(NothingToDraw, match=message):
        figure_of(name, tmp_path)


def test_files_are_written_and_missing_figures_named_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    failed = write_run(tmp_path, seed=1, status="failed")
    before = dict(mpl.rcParams)
    written = draw_figures(tmp_path / "e2e_nlg")
    assert dict(mpl.rcParams) == before
    folder = tmp_path / "e2e_nlg" / "figures"
    assert {path.name for path in folder.iterdir()} == {path.name for path in written}
    assert {path.stem for path in written} == {"cost", "training_curves", "validation_curves"}, (
        "one count of parameters"
    )
    assert all(path.read_bytes().startswith(b"%PDF") for path in written if path.suffix == ".pdf")
    printed = capsys.readouterr().out
    assert "not drawn" not in printed and failed.name in printed
    draw_figures(tmp_path / "e2e_nlg", only=["sampling", "parameters"])
    assert "sampling: not drawn" in capsys.readouterr().out
    with pytest.raises(UserError, match="sampling: not drawn"):
        draw_figures(tmp_path / "e2e_nlg", only=["sampling"])
    assert {p.name for p in draw_figures(tmp_path, only=["parameters"], metric="BLEU", out=tmp_path / "o")} == {
        "parameters-BLEU.png",
        "parameters-BLEU.pdf",
    }


def test_each_model_has_its_own_figures(tmp_path: Path) -> None:
    write_run(tmp_path, model="gpt2", loss=1.0)
    write_run(tmp_path, model="org/gpt2-medium", loss=2.0)
    names = {path.name for path in draw_figures(tmp_path, only=["parameters"])}
    assert names == {f"parameters-{model}.{kind}" for model in ("gpt2", "org-gpt2-medium") for kind in ("png", "pdf")}
    assert lines(figure_of("parameters", tmp_path, "val_loss", "org/gpt2-medium"))["ROSA"][1] == [2.0]


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_run(tmp_path)
    contents = []
    for folder in ("a", "b"):
        with style():
            files = save(figure_of("parameters", tmp_path), tmp_path / folder, "parameters")
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    assert b"CreationDate" not in contents[0][1]


def test_no_text_overlaps_or_leaves_the_page(tmp_path: Path) -> None:
    for method in ("rosa", "lora", "a_method_with_quite_a_long_name_$x$"):
        for rank in (0.0125, 0.025, 0.05, 0.1, 1, 128):
            write_run(tmp_path, method=method, rank=rank, loss=1 + rank / 50)
            for rate in (1e-4, 3e-4, 1e-3) if rank in (0.05, 128) else ():
                write_run(tmp_path, method=method, rank=rank, config={"train.lr": rate, "output.search": True})
    write_run(tmp_path, method="none")
    write_run(tmp_path, rank=128, config={"fnmodel.rosa.sample_method": "bottom"})
    for name in plots():
        with style():
            figure = plots()[name].draw(load_plot_data(tmp_path)[0])
            add_title(figure, f"{'a' * 25}, {'b' * 40}")
            figure.canvas.draw()
        drawn = [text for part in (*figure.legends, *figure.axes) for text in getattr(part, "texts", [])]
        drawn += [legend.get_title() for legend in figure.legends]
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            drawn += [axis.label, *(tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)]
        boxes = [
            (text.get_text(), text.get_window_extent()) for text in drawn if text.get_text() and text.get_visible()
        ]
        assert len(boxes) > 5
        page = figure.bbox.padded(1)
        for i, (text, box) in enumerate(boxes):
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, (name, text)
            for other, other_box in boxes[i + 1 :]:
                assert not box.padded(-1).overlaps(other_box.padded(-1)), (name, text, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["curvse"]}, "Known: cost"),
        ({"metric": "BLUE"}, "Did you mean BLEU"),
        ({"metric": "METEOR", "only": ["parameters"]}, "METEOR"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    write_run(tmp_path, scores={"METEOR": None})
    with pytest.raises(UserError, match=message):
        draw_figures(tmp_path, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("figures"))


def test_runs_that_cannot_be_drawn_give_one_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "two")
    write_run(tmp_path / "two", dataset="eli5")
    write_run(tmp_path / "failed", status="failed", record={"error": "boom"})
    for folder, message in (("empty", "no runs"), ("two", "several data sets"), ("failed", "boom")):
        with pytest.raises(UserError, match=message):
            draw_figures(tmp_path / folder)
    command = [sys.executable, "figures.py", "--fn", str(tmp_path / "absent")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "not a folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("figures"))
