"""The processes of one job: which of them writes, how they agree, and how they end together.

``torchrun`` and ``accelerate launch`` start the processes, which all run the same code. Only the main process writes
files and takes locks; ``run_on_main`` sends its results to the others. They communicate over the CPU (gloo), so that an
agreement never waits for a GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from utils.errors import UserError

T = TypeVar("T")
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and those of MPI
TIMEOUT = datetime.timedelta(minutes=30)  # a process may be alive but busy, say with a long write
GRACE = 30.0  # seconds between SIGTERM and the end, as torchrun has it
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


class EchoedError(UserError):
    """The main process's error, raised on the other processes to end them. They do not print it."""


@dataclass(frozen=True)
class Processes:
    """This process among those of its job.

    Attributes:
        index: the index of this process; 0 is the main one.
        count: the number of processes.
        control: the gloo group for agreements; None if there is one process.
    """

    index: int = 0
    count: int = 1
    control: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def run_on_main(self, decide: Callable[[], T]) -> T:
        """Call ``decide`` on the main process only, and return its result on all processes, which wait for it.

        Raises:
            EchoedError: ``decide`` raised an error. The main process raises the error itself.
        """
        if self.count == 1:
            return decide()
        if not self.main:
            result, failure = self._from_main(None)
            if failure is not None:
                raise EchoedError(failure)
            return cast(T, result)
        try:
            result = decide()
        except Exception as error:
            self._from_main((None, f"{type(error).__name__}: {error}"))
            raise
        self._from_main((result, None))
        return result

    def _from_main(self, value: Any) -> Any:
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, 0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in order of their indices, on every process."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def same_error(self, text: str, kind: type[UserError] = UserError) -> UserError:
        """The error for a problem that all processes find at the same time. Only the main process prints it."""
        return kind(text) if self.main else EchoedError(text)


_connected: Processes | None = None


def connect(device: str) -> Processes:
    """Connect to the other processes of this job; a second call only returns them.

    Args:
        device: the resolved ``train.device``: cpu, cuda or mps.
    """
    global _connected
    if _connected is None:
        _connected = _open_connection(device)
    return _connected


def _open_connection(device: str) -> Processes:
    for plugin in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() == "true":
            raise UserError(
                f"accelerate's own {plugin} does not know of adapters: launch without it, with train.sharding=fsdp"
            )
    if all(int(os.environ.get(name) or 1) <= 1 for name in SIZES):
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:
            print(
                "warning: accelerate launch starts one process on CPUs, also with --num_processes, unless MPI is set "
                "up: use torchrun --nproc_per_node=N for more. The result is the same",
                file=sys.stderr,
            )
        return Processes()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # then torchrun listens before it starts a process
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        try:
            socket.create_connection(address, timeout=GRACE).close()
        except OSError:  # PartialState would try for as long as TIMEOUT
            raise UserError("torchrun cannot be reached: it was killed before its processes had connected") from None
    import torch.distributed as dist
    from accelerate import PartialState

    # without cpu=True each process of a CPU job works as if it were the only one
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    return Processes(state.process_index, state.num_processes, dist.new_group(backend="gloo", timeout=TIMEOUT))


def end_with_launcher() -> None:
    """Let this process end if the torchrun that started it is killed, which can end nobody itself then.

    It gets SIGTERM, as torchrun would send, and is ended after ``GRACE`` if it waits in a call that handles no signal.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def disconnect_at_end() -> Iterator[None]:
    """A context for the code of a whole process. If it is connected to others, the process ends with the block.

    A thread of gloo may free a tensor of the last agreement later than the main thread goes on. While the interpreter
    finalises, that aborts the process, and the launcher would report a training as failed that finished, or that saved
    and stopped. So this calls the exit functions, as finalising does, and leaves out the rest. Other errors than
    ``SystemExit`` pass through.
    """
    code: Any = None
    try:
        yield
    except SystemExit as end:
        code = end.code
    dist = sys.modules.get("torch.distributed")  # None: nothing was connected
    if dist is None or not dist.is_available() or not dist.is_initialized():
        sys.exit(code)
    if not code:
        dist.destroy_process_group()  # after a failure the others may be gone already
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Re-raise the error that follows another process's death, or its failure in a resample, as a UserError."""
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        from rosa.errors import OtherProcessError

        several = _connected is not None and _connected.count > 1
        told = isinstance(error, (dist.DistError, OtherProcessError))
        if several and (told or any(word in str(error).lower() for word in LOST)):
            raise UserError(
                "another process of this job ended or cannot be reached; its own output says why. The checkpoints "
                "so far are kept: run the same command again to go on"
            ) from None
        raise
