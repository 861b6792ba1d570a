"""Processes, devices and signals.

``group.py``: the processes of a job, which of them writes and how they agree; ``devices.py``: device and precision;
``signals.py``: requests to stop, the same on every process. Imports config and errors.
"""
