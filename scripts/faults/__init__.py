"""Cause every fault that a run can meet, many times, and count what is lost: ``python -m scripts.faults --help``."""
