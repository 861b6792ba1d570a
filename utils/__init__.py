"""Everything around the adapters, in rooms. Imports go down only; docs/architecture.md says what is in each.

From the top: ``plots``, ``tables``, ``export``, ``prompt.py``, ``evaluation.py``, ``training``, ``slurm``, ``results``,
``metrics``, ``generation``, ``runs``, ``models``, ``processes``, ``config``, ``tokens``, ``data``, ``log.py``, ``io``,
``text.py``, ``errors.py``.
"""
