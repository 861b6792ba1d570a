"""Runs: their directory and record, what makes two runs the same, checkpoints, metrics, and what they were made with.

``run.py`` knows every file of a run and finds runs; ``identity.py`` names the directory after the settings;
``digests.py`` compares the data; ``checkpoint.py`` verifies and reads one checkpoint; ``checkpoints.py`` writes,
prunes and resumes those of a run; ``metrics_writer.py`` writes metrics.jsonl and TensorBoard; ``texts.py`` writes and
reads what an evaluation generated; ``provenance.py`` records versions and hardware.
"""

from utils.runs.run import RUN_POINTER, Run, find_runs, finite

__all__ = ["RUN_POINTER", "Run", "find_runs", "finite"]
