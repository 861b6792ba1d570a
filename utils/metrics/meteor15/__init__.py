"""METEOR 1.5 for English (Denkowski and Lavie 2014) with the tables that pycocoevalcap installs.

``counts.py`` computes the statistics of each prediction. ``normalize.py`` makes the tokens, ``matches.py`` finds all
matches with ``lexicon.py`` (stems, synonyms) and ``phrases.py`` (paraphrases), ``align.py`` chooses among them.
``resources.py`` reads the tables. Written from the paper and by comparison with the official program's output.
"""
