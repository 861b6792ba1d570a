"""Sweeps on SLURM, or on this machine: what ``jobrunner.py`` does.

    sweep/           jobs.yaml: read, checked, expanded into groups of jobs
    cluster/         SLURM's programs, the batch script, and what it notes while it runs
    ledger.py        the sweep's state file: which jobs were handed to SLURM under which name
    status.py        what became of each job, from all of these together (status_table.py: as a table)
    recovery.py      what SLURM has under names whose fate the state file does not know
    submit.py        what to send, and sending it so that a kill at any point loses and doubles nothing
    local.py         the same jobs on this machine
    commands.py      what each option of jobrunner.py does with these

A job's identity is its group and what its command says, so that reordering or extending jobs.yaml sends nothing
twice. A submission (one sbatch, an array or a single job) has a unique name, written to the state file before
sbatch is called: whatever happens then, the name can be looked up.
"""
