"""SLURM's commands and the batch script.

``client.py`` calls sbatch, squeue, sacct and scancel; ``parse.py`` reads what they print; ``reasons.py`` explains why a
job waits; ``script.py`` fills in the batch script (``job.sh``); ``events.py`` reads what that notes while it runs.
"""
