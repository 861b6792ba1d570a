"""Training loss over epochs, averaged over short intervals, because the loss of single batches is noisy."""

from __future__ import annotations

from matplotlib.figure import Figure

from utils.metrics import LOWER
from utils.plots import NothingToDraw, PlotData, register
from utils.plots._curves import draw_curves
from utils.plots._style import axis_label
from utils.results.columns import LOSS_UNIT

BINS = 50
_FEW = 10  # with fewer points in each run, a note advises to log more often


@register("training_curves", "training loss over epochs by method and rank")
def draw(data: PlotData) -> Figure:
    """Mean training loss in each of BINS equal parts of the run."""
    if data.loss != "loss":
        raise NothingToDraw("these runs were trained on different tokens, so their training losses are not comparable")
    curves = [curve for row in data.trained() if (curve := data.curve(row, "train", "loss", BINS))]
    points = max((len(curve.x) for curve in curves), default=0)
    advice = f"at most {points} logging points in a run: train with a smaller logging.print_freq"
    if points == 1:
        raise NothingToDraw(advice)
    if points < _FEW and curves:
        data.note(f"{data.model}: training_curves has {advice}")
    return draw_curves(data, "train", "loss", axis_label("training loss", LOSS_UNIT, LOWER), bins=BINS)
