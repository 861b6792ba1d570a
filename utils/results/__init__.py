"""Results of many runs, as tables and figures share them.

``read.py`` reads runs and says what is wrong with each; ``aggregate.py`` averages seeds; ``columns.py`` lists what is
measured and ``methods.py`` what methods are called; ``compare.py`` tests two runs' scores; ``diff.py`` says how two
runs differ.
"""
