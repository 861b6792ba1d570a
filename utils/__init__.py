"""The experiment around the adapters, in rooms; imports go down only (docs/architecture.md draws them).

Above: ``training``, ``evaluation.py``, ``tables``, ``plots`` and ``slurm``, which the commands call. Below them:
``generation``, ``metrics``, ``results``, ``models``, ``tokens``, ``runs``, ``processes``, ``data``. On the ground:
``config.py`` (every key, typed), ``schema.py``, ``io``, ``log.py`` and ``errors.py``.
"""
