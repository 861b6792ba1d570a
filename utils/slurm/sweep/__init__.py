"""What a sweep is: the file, its checks, and the words of its commands.

``file.py`` reads jobs.yaml and expands it into groups of jobs; ``checks.py`` and ``resources.py`` check its keys,
``overrides.py`` each override against the configuration; ``quoting.py`` quotes for Hydra and the shell.
"""
