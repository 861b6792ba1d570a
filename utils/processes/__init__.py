"""Processes, devices and signals.

``group.py`` knows the processes of a job, which of them writes, and how they agree; ``devices.py`` resolves the device
and the precision; ``signals.py`` turns signals into a request to stop, the same on every process.
"""
