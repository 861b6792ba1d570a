"""The processes of one job: which of them writes, how they agree, and how they end together.

``torchrun`` and ``accelerate launch`` start the processes; each runs the same code. What only one may do (files, locks)
the main process does, and the others learn how it went: ``decided_by_main``. Agreements travel over the CPU (gloo), so
that they never wait for a GPU.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from utils.errors import UserError

T = TypeVar("T")
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and those of MPI
PATIENCE = datetime.timedelta(minutes=30)  # for a process that is alive but does not answer, say during a long write
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


class EchoedError(UserError):
    """The main process's error on the other ones, which end by it; the main process says it."""


@dataclass(frozen=True)
class Processes:
    """This process among those of its job.

    Attributes:
        rank: its number; 0 is the main one.
        count: how many there are.
        control: the gloo group that agreements use; None with a single process.
    """

    rank: int = 0
    count: int = 1
    control: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def decided_by_main(self, decide: Callable[[], T]) -> T:
        """What ``decide`` returns on the main process, which alone calls it. All processes wait for it here.

        Raises:
            EchoedError: on the other processes, when ``decide`` raised; on the main one what it raised.
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

    def gathered(self, value: T) -> list[T]:
        """Everybody's ``value`` by rank, on every process."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def same_error(self, text: str) -> UserError:
        """An error that every process meets at the same place: the main one's is said, the others' only end them."""
        return UserError(text) if self.main else EchoedError(text)


_joined: Processes | None = None


def join(device: str) -> Processes:
    """Meet the other processes of this job; a second call gives the same answer.

    Args:
        device: ``train.device`` resolved: cpu, cuda or mps.
    """
    global _joined
    if _joined is None:
        _joined = _connect(device)
    return _joined


def _connect(device: str) -> Processes:
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError("accelerate's own FSDP does not know of adapters: launch without it, with train.sharding=fsdp")
    if all(int(os.environ.get(name, "1")) <= 1 for name in SIZES):
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:
            print(
                "warning: accelerate launch starts one process on CPUs, whatever --num_processes says, unless MPI is "
                "set up: take torchrun --nproc_per_node=N for more. The result is the same",
                file=sys.stderr,
            )
        return Processes()
    import torch.distributed as dist
    from accelerate import PartialState

    # cpu=True: without it every rank of a CPU job takes itself for the only one
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, dist.new_group(backend="gloo", timeout=PATIENCE))


def leave() -> None:
    """Take leave of the other processes, once all is done; not after a failure, when they may no longer be there."""
    dist = sys.modules.get("torch.distributed")  # who has not imported it has joined nobody
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def lost_process_is_said() -> Iterator[None]:
    """Turn the communication's error after another process's end into a UserError."""
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        several = _joined is not None and _joined.count > 1
        if several and (isinstance(error, dist.DistError) or any(word in str(error).lower() for word in LOST)):
            raise UserError(
                "another process of this job ended or cannot be reached; why stands in its own output. The checkpoints "
                "up to here are kept: run the same command again to go on"
            ) from None
        raise
