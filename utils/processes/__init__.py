"""Processes, devices and signals.

``group.py`` connects the processes of a job and lets them agree; ``devices.py`` resolves the device and the precision;
``signals.py`` turns signals into a request to stop, the same on every process.
"""
