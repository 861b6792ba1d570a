"""Why a job waits, in words: SLURM's reason codes as a user can act on them (squeue(1), JOB REASON CODES)."""

from __future__ import annotations

NEVER = "what it waits for did not end well; --retry that, and this goes with it"
_WORDS = {
    "BeginTime": "its time to start has not come; SLURM lets requeued jobs wait for two minutes",
    "Dependency": "a group it comes after has not ended",
    "JobArrayTaskLimit": "max_jobs of its group are running",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "scontrol release NUMBER lets it go",
    "PartitionNodeLimit": "its partition never has so many nodes: change resources",
    "PartitionTimeLimit": "its time is above its partition's limit and it will not start: change resources",
    "Priority": "other jobs come first",
    "ReqNodeNotAvail": "nodes it could use are down, drained or reserved, for maintenance perhaps",
    "Resources": "nothing is free that it could use",
}
_PREFIXES = {"Assoc": "a limit of your account", "QOS": "a limit of its quality of service"}


def explain(reason: str, expected: str = "") -> str:
    """SLURM's ``reason`` with what it means, and when the job is expected to start where SLURM knows."""
    code = reason.partition(",")[0].strip()
    words = _WORDS.get(code) or next((text for key, text in _PREFIXES.items() if code.startswith(key)), "")
    told = f"{reason}: {words}" if words else reason
    return f"{told}; expected to start {expected}" if told and expected else told
