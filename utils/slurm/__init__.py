"""Sweeps on SLURM, or on this machine: what ``jobrunner.py`` does.

    sweep/           reads jobs.yaml, checks it, and expands it into groups of jobs
    cluster/         SLURM's commands, the batch script (job.sh), and what that notes while it runs
    ledger.py        the ledger, the file of submissions: which jobs were sent under which name
    status.py        the state of each job, from all of these (status_table.py prints it)
    outdated.py      finds jobs that are done without the newest results of the groups they wait for
    recovery.py      looks up in SLURM what the ledger does not know
    submit.py        decides what to send, and sends it so that a kill loses and doubles nothing
    variables.py     the environment variables in overrides, and whether they have changed
    next_job.py      the job that goes on with a search
    local.py         runs the same jobs on this machine
    commands.py      what each option of jobrunner.py does

A job's identity is its group and its command, so that reordering or extending jobs.yaml sends nothing twice. A
submission (one call of sbatch, for an array or a single job) has a unique name. The ledger has that name before sbatch
is called, so that it can be looked up after a kill.
"""
