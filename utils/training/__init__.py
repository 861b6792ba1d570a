"""Training one run.

``launch.py``: from a configuration to finished runs; ``data.py``: both training splits; ``trainer.py``: the loop;
``optimizers.py``: optimizers and schedules; ``placement.py``: the model on one process or many; ``loss_meter.py``: the
loss between logging points; ``failures.py``: errors that come with advice. Imports generation, models, tokens, runs,
processes and what lies below them.
"""
