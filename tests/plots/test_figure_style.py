"""What could mislead a reader of a figure: colours, axes, legends, error bars."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from tests.plots.test_plots import figure_of, lines, texts
from tests.records import file_name, write_run
from utils.plots import NothingToDraw, draw_figures
from utils.plots._data import load_plot_data
from utils.plots._style import rank_marker, rank_shade, ranks_of


def grey(colour: object) -> float:
    """The lightness of a colour in grey print, from 0 (black) to 1 (white)."""
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def title(figure: Figure) -> str:
    return figure.legends[0].get_title().get_text()


def ticks(axis: Axis) -> list[str]:
    axis.figure.canvas.draw()
    low, high = sorted(axis.get_view_interval())
    return [tick.label1.get_text() for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def test_a_method_has_one_colour_and_line_style_in_all_figures(tmp_path: Path) -> None:
    methods = {"none": "full fine-tuning", "lora": "LoRA", "rosa": "ROSA", "aaa": "aaa", "new": "new"}
    for method in methods:  # the figure of the final metric has all methods but one
        write_run(tmp_path, method=method, scores={"absent": True} if method == "aaa" else {})
    curves = {line.get_label(): line for line in figure_of("validation_curves", tmp_path).axes[0].lines}
    parameters = figure_of("parameters", tmp_path, "BLEU")
    points = {c.get_label(): c.lines[0] for c in parameters.axes[0].containers}
    cost = figure_of("cost", tmp_path).axes[0]
    bars = dict(zip(ticks(cost.yaxis), cost.patches, strict=True))
    colours = {name: to_hex(curves[name].get_color()) for name in methods.values()}
    assert len(set(colours.values())) == 5
    for name, colour in colours.items():
        assert to_hex(bars[name].get_edgecolor()) == colour
        if name not in ("aaa", "full fine-tuning"):
            assert to_hex(points[name].get_color()) == colour
    dashes = [curves[name]._dash_pattern for name in methods.values()]
    assert all(one != other for one, other in itertools.combinations(dashes, 2))  # different in grey, too


def test_each_rank_has_a_shade_and_a_marker(tmp_path: Path) -> None:
    for rank in (4, 1, 0.1, 1.0, 0.05):
        for method in ("lora", "rosa"):
            write_run(tmp_path, rank=rank, method=method)
    (data,) = load_plot_data(tmp_path)
    ranks = ranks_of(data.rows)
    assert [str(rank) for rank in ranks] == ["0.05", "0.1", "1.0", "1", "4"]
    assert len({rank_marker(ranks, rank) for rank in ranks}) == 5
    for colour in ("#E69F00", "#0072B2", "#009E73"):
        shades = [grey(rank_shade(colour, ranks, rank)) for rank in ranks]
        assert all(later - earlier > 0.05 for earlier, later in itertools.pairwise(shades))
        assert shades[-1] < 0.85  # visible on white
    figure = figure_of("validation_curves", tmp_path)
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    assert drawn["LoRA R=4"].get_marker() == drawn["ROSA R=4"].get_marker() != drawn["ROSA 0.1"].get_marker()
    assert texts(figure)[:2] == ["LoRA 0.05", "LoRA 0.1"]  # in the order of the ranks
    assert title(figure) == "rank ratio or rank R"


@pytest.mark.parametrize(
    ("ranks", "expected_title", "labels"),
    [
        ([0.33], "rank ratio 0.33", ["ROSA"]),
        ([8], "rank R 8", ["ROSA"]),
        ([0.05, 0.1], "rank ratio", ["ROSA 0.05", "ROSA 0.1"]),
        ([4, 8], "rank R", ["ROSA 4", "ROSA 8"]),
        ([0.05, 8], "rank ratio or rank R", ["ROSA 0.05", "ROSA R=8"]),
    ],
)
def test_a_legend_says_whether_a_rank_is_a_ratio(
    tmp_path: Path, ranks: list, expected_title: str, labels: list[str]
) -> None:
    for rank in ranks:
        write_run(tmp_path, rank=rank)
    for name in ("validation_curves", "training_curves"):
        figure = figure_of(name, tmp_path)
        assert (title(figure), texts(figure)) == (expected_title, labels)
    cost = figure_of("cost", tmp_path)
    assert (title(cost), ticks(cost.axes[0].yaxis)) == (expected_title, labels)


def test_the_axis_of_a_curve_leaves_out_the_value_before_training(tmp_path: Path) -> None:
    for method, values in (("rosa", [1.3, 1.1, 1.05]), ("lora", [1.4, 1.2, 1.15])):
        run = write_run(tmp_path, method=method, validation=values, epochs=3)
        start = {"split": "validation", "epoch": 0, "step": 0, "loss": 7.25}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(start) + "\n")
    figure = figure_of("validation_curves", tmp_path)
    (axes,) = figure.axes
    assert lines(figure)["ROSA"] == ([1, 2, 3], [1.3, 1.1, 1.05])
    assert 1.0 < axes.get_ylim()[0] < 1.05 and 1.4 < axes.get_ylim()[1] < 1.5
    assert axes.get_xlabel() == "epoch\nnot shown: 7.25 before training (epoch 0)"
    assert ticks(axes.xaxis) == ["1", "2", "3"]


def test_large_first_values_lie_above_the_axis_and_are_noted(tmp_path: Path) -> None:
    values = [6.5, *(1.2 - epoch / 100 for epoch in range(19))]
    write_run(tmp_path, validation=values, epochs=20)
    write_run(tmp_path, method="lora", validation=[1.3, *values[1:]], epochs=20)
    (axes,) = figure_of("validation_curves", tmp_path).axes
    assert axes.get_ylim()[1] < 1.4 and axes.get_ylim()[0] < min(values)
    assert axes.get_xlabel() == "epoch\nthe first values, up to 6.5, lie above the axis"


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_epoch_ticks_are_whole(tmp_path: Path, epochs: int) -> None:
    write_run(tmp_path, epochs=epochs)
    for name, first in (("validation_curves", 1), ("training_curves", 0)):
        labels = ticks(figure_of(name, tmp_path).axes[0].xaxis)
        assert [label for label in labels if not label.isdigit()] == []
        assert int(labels[0]) == first and int(labels[-1]) == epochs


def test_every_axis_has_a_unit_or_direction(tmp_path: Path) -> None:
    write_run(tmp_path)
    loss = "loss (nats per token,\nlower is better)"
    assert figure_of("validation_curves", tmp_path).axes[0].get_ylabel() == f"validation {loss}"
    assert figure_of("training_curves", tmp_path).axes[0].get_ylabel() == f"training {loss}"
    assert figure_of("parameters", tmp_path, "val_loss").axes[0].get_ylabel() == f"validation {loss}"
    assert figure_of("parameters", tmp_path).axes[0].get_ylabel() == "test perplexity (lower is better)"


def test_training_points_are_in_the_middle_of_the_interval_they_average(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, epochs=3)
    points = [{"split": "train", "epoch": epoch, "step": 1, "loss": loss} for epoch, loss in ((2.6, 2.0), (3.0, 1.0))]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, points)), encoding="utf-8")
    figure = figure_of("training_curves", tmp_path)
    assert lines(figure)["ROSA"] == ([1.3, 2.8], [2.0, 1.0])
    assert ticks(figure.axes[0].xaxis) == ["0", "1", "2", "3"]
    draw_figures(tmp_path, only=["training_curves"])
    assert "at most 2 logging points in a run: train with a smaller logging.print_freq" in capsys.readouterr().out
    (run / "metrics.jsonl").write_text(json.dumps(points[1]), encoding="utf-8")
    with pytest.raises(NothingToDraw, match=r"logging\.print_freq"):
        figure_of("training_curves", tmp_path)


def test_error_bars_are_visible_on_bars_and_markers(tmp_path: Path) -> None:
    for method, seed in itertools.product(("none", "lora", "rosa"), (0, 1)):
        timings = {"train_seconds": 600 + seed, "peak_memory_mib": 9000 + seed}
        write_run(tmp_path, method=method, seed=seed, loss=1 + seed / 1e4, record={"timings": timings})
    cost = figure_of("cost", tmp_path)
    for axes in cost.axes:
        assert len(axes.patches) == len(axes.containers) - 3 == 3  # bars, and an error bar for each
        for bar in axes.patches:
            assert grey(bar.get_facecolor()[:3]) > 0.5  # its error bar is black
    assert "error bars: ± 1 std, 2 seeds" in title(cost)
    container = next(c for c in figure_of("parameters", tmp_path).axes[0].containers if c.get_label() == "ROSA")
    marker, caps, (bar,) = container.lines
    assert caps[0].get_markersize() > marker.get_markersize() + 1 and to_hex(marker.get_markerfacecolor()) == "#ffffff"
    assert bar.get_zorder() > marker.get_zorder() or caps[0].get_zorder() > marker.get_zorder()


def test_one_seed_has_no_error_bar(tmp_path: Path) -> None:
    write_run(tmp_path)
    figure = figure_of("parameters", tmp_path)
    (container,) = figure.axes[0].containers
    assert not any(np.isfinite(path.vertices[:, 1]).any() for path in container.lines[2][0].get_paths())
    assert title(figure) == "rank ratio 0.05"


def test_a_single_point_has_no_line_in_the_legend(tmp_path: Path) -> None:
    for rank, sample in ((0.05, "random"), (0.1, "random"), (0.1, "bottom")):
        write_run(tmp_path, rank=rank, config={"fnmodel.rosa.sample_method": sample})
    handles = figure_of("sampling", tmp_path).legends[0].legend_handles
    assert [handle.get_linestyle() for handle in handles] == ["-", "None"]
    write_run(tmp_path, method="lora")
    handles = figure_of("parameters", tmp_path).legends[0].legend_handles
    assert [handle.get_linestyle() for handle in handles] == ["None", "-"]


def test_sample_methods_are_shades_of_the_method(tmp_path: Path) -> None:
    for sample in ("random", "bottom", "top", "window"):
        write_run(tmp_path, config={"fnmodel.rosa.sample_method": sample})
        write_run(tmp_path, rank=0.1, config={"fnmodel.rosa.sample_method": sample})
    figure = figure_of("sampling", tmp_path)
    drawn = [container.lines[0] for container in figure.axes[0].containers]
    assert to_hex(drawn[0].get_color()) == "#0072b2"  # random has ROSA's colour
    for trait in (lambda line: line.get_marker(), lambda line: str(line._dash_pattern), lambda line: line.get_color()):
        assert len(set(map(trait, drawn))) == 4
    assert figure.axes[0].get_xlabel() == "rank ratio" and ticks(figure.axes[0].xaxis) == ["0.05", "0.1"]


def test_parameter_ticks_are_at_the_counts_and_inside_the_axes(tmp_path: Path) -> None:
    for method, trainable in (("lora", 143_000), ("rosa", 145_000)):
        write_run(tmp_path, method=method, record={"parameters": {"total": 577_000, "trainable": trainable}})
    axis = figure_of("parameters", tmp_path).axes[0].xaxis
    assert ticks(axis) == ["143k"]
    write_run(tmp_path, method="rosa", rank=1, record={"parameters": {"total": 577_000, "trainable": 9_000}})
    figure = figure_of("parameters", tmp_path)
    assert ticks(figure.axes[0].xaxis) == ["9k", "143k"]
    inside = figure.axes[0].bbox
    for tick in figure.axes[0].xaxis.get_major_ticks():
        box = tick.label1.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1


def test_control_characters_are_escaped_in_messages_and_legends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "x\x1b]0;t\x07\x9by"
    write_run(tmp_path, method=odd)
    write_run(tmp_path, method="lora", config={f"z{odd}": 1})
    write_run(tmp_path, method="lora", config={f"z{odd}": odd}, loss=2.0)
    failed = write_run(tmp_path, seed=1, status="failed", record={"error": odd})
    failed.rename(failed.with_name(file_name(odd)))
    draw_figures(tmp_path, out=tmp_path / file_name(odd))
    printed = capsys.readouterr().out
    legends = texts(figure_of("parameters", tmp_path))
    assert not set("".join([printed.replace("\n", ""), *legends])) & {"\x1b", "\x07", "\x9b"}
    assert legends[1].startswith(r"x\x1b]0;t") and printed.count(r"x\x1b]0;t\x07") > 5
