"""SLURM's words for how a job ended, and for why one waits, in words that a user can act on (squeue(1))."""

from __future__ import annotations

# SLURM's states of jobs that have ended, and the words for them.
ENDED = {
    "COMPLETED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "LAUNCH_FAILED": "failed",
    "RECONFIG_FAIL": "failed",
    "REVOKED": "cancelled",
}
NEVER = "what it waits for did not end well; --retry sends that again, and this behind it"
_WORDS = {
    "BeginTime": "its time to start has not come; SLURM lets requeued jobs wait for two minutes",
    "Dependency": "jobs that it comes after (after, max_jobs) have not ended",
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
    """SLURM's ``reason``, what it means, and when SLURM expects the job to start (``expected``, if not empty)."""
    code = reason.partition(",")[0].strip()
    words = _WORDS.get(code) or next((text for key, text in _PREFIXES.items() if code.startswith(key)), "")
    text = f"{reason}: {words}" if words else reason
    return f"{text}; expected to start {expected}" if text and expected else text
