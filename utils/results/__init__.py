"""Results of many runs, as tables and figures share them.

``read.py`` reads runs and says what is wrong with each; ``aggregate.py`` averages seeds; ``columns.py`` names what can
be shown; ``compare.py`` tests two runs' scores; ``diff.py`` says how two runs differ. Imports data, metrics,
runs and io.
"""
