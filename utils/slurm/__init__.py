"""Sweeps on SLURM, or on this machine: what ``jobrunner.py`` does.

    sweep.py      jobs.yaml: read, check, expand into groups of jobs   (documents.py, resources.py, quoting.py)
    overrides.py  every override is a key of the configuration, and its value is allowed
    script.py     the batch script of a group of jobs, as text
    client.py     sbatch, squeue, sacct, scancel        (parse.py: what they print; reasons.py: why a job waits)
    state.py      the sweep's state file: which jobs were handed to SLURM under which name
    markers.py    what the batch script itself notes while it runs
    status.py     what became of each job, from all of these together (table.py: as a table)
    recovery.py   what SLURM has under names whose fate the state does not know
    submit.py     what to send, and sending it so that a kill at any point loses and doubles nothing
    local.py      the same jobs on this machine
    commands.py   what each option of jobrunner.py does with these

A job's identity is its group and what its command says, so that reordering or extending jobs.yaml sends nothing
twice. A submission (one sbatch, an array or a single job) has a unique name, written to the state file before
sbatch is called: whatever happens then, the name can be looked up.
"""
