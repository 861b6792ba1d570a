"""Scoring files and run folders with the metrics.

``reader.py`` reads predictions and references. ``score_runs.py`` scores run folders, as eval.sh does. ``bootstrap.py``
compares two systems. ``workers.py`` distributes items over processes. ``java.py`` computes three scores with the
official jars.
"""
