"""Training loss over epochs, averaged over short stretches because single batches are noise."""

from __future__ import annotations

from matplotlib.figure import Figure

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._curves import draw_curves

STRETCHES = 50


@register("training_curves", "training loss over epochs by method and rank")
def draw(data: PlotData) -> Figure:
    """Mean training loss in each fiftieth of the run."""
    if data.loss != "loss":
        raise NothingToDraw("these runs were trained on different tokens, so their training losses do not compare")
    return draw_curves(data, "train", "loss", "training loss", bins=STRETCHES)
