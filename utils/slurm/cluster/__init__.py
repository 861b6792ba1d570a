"""SLURM itself.

``client.py`` calls sbatch, squeue, sacct and scancel; ``parse.py`` reads what they print; ``reasons.py`` explains why a
job waits; ``script.py`` writes a group's batch script; ``events.py`` reads what that script notes while it runs.
"""
