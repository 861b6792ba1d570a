"""Runs: their directory, record, identity, checkpoints, metrics and provenance.

``run.py`` knows every file of a run and finds runs; ``identity.py`` names the directory after the settings;
``inputs.py`` compares data, base model and adapter with those that the run began with; ``checkpoint_folder.py``
verifies and reads one checkpoint; ``checkpoints.py`` writes and prunes the checkpoints of a run, and selects the one
from which it goes on; ``metrics_writer.py`` writes metrics.jsonl and passes the same to ``loggers.py`` (TensorBoard
and others); ``texts.py`` writes and reads generated texts; ``provenance.py`` records versions and hardware;
``start_adapter.py`` keeps the adapter that a run starts from; ``trained.py`` loads the model that a run has trained.
"""

from utils.runs.run import RUN_POINTER, UNFIT_NOTE, Run, find_runs, finite

__all__ = ["RUN_POINTER", "UNFIT_NOTE", "Run", "find_runs", "finite"]
