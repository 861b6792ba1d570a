"""The sweep file: reading it, checking it, and writing the commands of its jobs.

``file.py`` reads jobs.yaml and expands it into groups of jobs; ``checks.py`` and ``resources.py`` check its keys,
``overrides.py`` each override against the configuration; ``search.py`` says which trials a search needs and what it has
chosen, ``repeats.py`` which job trains what two groups ask for; ``quoting.py`` quotes for Hydra and the shell.
"""
