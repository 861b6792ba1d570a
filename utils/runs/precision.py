"""In which precision a run computes: decided when it begins, part of its identity, and kept to its end."""

from __future__ import annotations

from utils.config.settings import Config
from utils.errors import UserError
from utils.processes.devices import check_precision, resolve_device, resolve_precision
from utils.runs.digests import identify_run
from utils.runs.run import Run


def settle_precision(config: Config, hidden_size: int | None) -> tuple[Config, str]:
    """The settings that identify the run, and the precision in which it computes: fp32, bf16 or fp16.

    If auto chooses bf16 on a CPU, the run's identity has ``train.precision=bf16``; otherwise it has auto, as runs of
    earlier versions have. An existing run of either identity keeps its precision, whatever this machine would choose.

    Args:
        hidden_size: the model's.

    Raises:
        UserError: this machine does not have the precision in which the run began.
    """
    device = resolve_device(config.train.device)
    resolved = resolve_precision(config.train.precision, device, hidden_size)
    if config.train.precision != "auto":
        return config, resolved
    explicit = config.with_precision("bf16")
    candidates = [config, explicit] if resolved == resolve_precision("auto", device) else [explicit, config]
    for candidate in candidates:
        run = Run(identify_run(candidate)[0])
        if run.record_file.exists():
            try:
                record = run.record()
            except UserError:  # an unreadable record is refused where the run is opened
                return candidate, resolved
            recorded = record.get("hardware", {}).get("precision", resolved)
            if record["status"] != "finished":
                check_precision(recorded, device, f"{run.path} began in it")
            return candidate, recorded
    return candidates[0], resolved
