"""When a training resamples: the settings ``level`` and ``every``."""

from __future__ import annotations

from typing import Any

SETTINGS = ("level", "every", "optimizer_state", "rewarm_steps")  # the same in all layers of a Resampler
AFTER_THE_END = "nothing resamples after the end of a training. Give the total over all epochs"


def count_resamples(schedule: Any, epochs: int, steps: int) -> int:
    """The resamples of a training of so many epochs and optimizer steps; none comes after the last of them.

    Args:
        schedule: has ``level`` and ``every``: a method's settings, or a ``Resampler``. Without them it is 0.
    """
    total = {"epoch": epochs, "step": steps}.get(getattr(schedule, "level", "never"), 0)
    return max(total - 1, 0) // getattr(schedule, "every", 1)


def too_short(schedule: Any, count: int) -> str:
    """That a training of ``count`` epochs or steps has no resample by this level and every, and the way out."""
    way_out = "level='step', every=STEPS" if schedule.level == "epoch" else "a smaller every"
    return (
        f"it has {count} {schedule.level}s, and level='{schedule.level}' with every={schedule.every} needs more. Adapt "
        f"the model with {way_out}, or with level='never'"
    )
