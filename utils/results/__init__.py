"""Results of many runs, for tables and figures.

``read.py`` reads runs and checks which of their results can be used. ``aggregate.py`` averages over seeds, and says
which rows are compared in a column. ``counterparts.py`` says which row another is compared with. ``columns.py`` defines
the measured columns. ``methods.py`` has the label, order and colour of each method. ``gap.py`` computes which share of
the gap between LoRA and full training a method closes. ``compare.py`` tests the difference of two runs' scores.
``diff.py`` lists the settings that differ between two runs.
"""
