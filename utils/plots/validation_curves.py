"""Validation loss over epochs, the same tokens for all runs."""

from __future__ import annotations

from matplotlib.figure import Figure

from utils.metrics import LOWER
from utils.plots import PlotData, register
from utils.plots._curves import draw_curves
from utils.plots._style import axis_label
from utils.results.columns import LOSS_UNIT

# The validation quantity of each final metric that is also measured during training. BLEU, for example, is not.
_BY_METRIC = {
    f"{split}_{name}{suffix}": f"{name}{suffix}"
    for split in ("val", "test")
    for name in ("loss", "perplexity", "bits_per_token", "bits_per_char")
    for suffix in ("", "_target", "_all")
}


@register("validation_curves", "validation loss over epochs by method and rank")
def draw(data: PlotData) -> Figure:
    """The validation quantity of ``data.metric`` if the user gave a metric that has one, otherwise the loss."""
    key = _BY_METRIC.get(data.metric.key, data.loss) if data.metric_given else data.loss
    unit = LOSS_UNIT if key.startswith("loss") else ""
    return draw_curves(data, "validation", key, axis_label(f"validation {key.replace('_', ' ')}", unit, LOWER))
