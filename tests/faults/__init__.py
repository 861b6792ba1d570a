"""Cause every fault that a run can meet, from outside, and count what is lost: docs/faults.md."""
