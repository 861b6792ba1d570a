"""The code of each process in ``test_sharded_adapters``: adapters of ``fully_shard``ed models are saved and loaded.

``torchrun --nproc_per_node=2 -m tests.processes.sharded_adapters FOLDER``; an error in either ends both.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import rosa
from rosa.sharding import gather, is_sharded
from tests.rosa.cases import logits, make_model, make_optimizer, tokens, train_steps
from utils.processes.group import disconnect_at_end


def sharded(family: str, config: rosa.AdapterConfig | None, start: bool = False) -> Any:
    """A model that is adapted, then split; its outermost group stays whole after a forward pass."""
    model = make_model(family)
    if config is not None:
        rosa.inject(model, config, start=start)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.transformer.h if family == "gpt2" else model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def values(model: Any) -> list[torch.Tensor]:
    return [gather(parameter) for parameter in model.parameters()]


def same(model: Any, other: Any) -> bool:
    return all(torch.equal(one, two) for one, two in zip(values(model), values(other), strict=True))


def check(family: str, config: rosa.AdapterConfig, folder: Path) -> None:
    model = rosa.start_adapters(sharded(family, config))
    optimizer = make_optimizer(model)
    train_steps(model, optimizer)
    rosa.resample(model, 1, optimizer)
    train_steps(model, optimizer, 1)  # no copies are found where none are kept
    expected = logits(model)  # leaves the outermost group gathered on each process
    rosa.save_adapter(model, folder, exact=True)
    dist.barrier()
    whole = rosa.load_adapter(make_model(family), folder)
    torch.testing.assert_close(logits(whole), expected, atol=1e-5, rtol=0)

    other = sharded(family, config)
    other(input_ids=tokens())
    rosa.load_adapter(other, folder)
    assert same(other, model) and all(is_sharded(parameter) for parameter in other.parameters())
    torch.testing.assert_close(logits(other), expected, atol=1e-5, rtol=0)

    with rosa.disabled(model):
        torch.testing.assert_close(logits(model), logits(make_model(family)), atol=1e-5, rtol=0)
    rosa.save_adapter(model, folder / "compact")
    dist.barrier()
    for loaded in (make_model(family), sharded(family, config)):
        rosa.load_adapter(loaded, folder / "compact")
        torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
        with rosa.disabled(loaded):
            torch.testing.assert_close(logits(loaded), logits(make_model(family)), atol=1e-5, rtol=0)

    before = values(model)
    rosa.export(model, folder / "plain")
    assert all(torch.equal(one, two) for one, two in zip(values(model), before, strict=True))
    plain = type(model).from_pretrained(folder / "plain").eval()
    torch.testing.assert_close(logits(plain), expected, atol=2e-5, rtol=0)
    assert torch.equal(logits(plain), logits(rosa.unwrap(whole)))

    if config.method == "rosa":
        rosa.save_adapter(model, folder, frozen=False, exact=True)
        rosa.resample(model, 2)
        with pytest.raises(rosa.AdapterError, match="frozen=True"):
            rosa.save_adapter(model, folder, frozen=False)  # raised on both processes, though only one writes
        layer = list(rosa.adapter_layers(model).values())[-1]
        torch.nn.init.constant_(layer.B, torch.nan)
        before = values(model)
        with pytest.raises(rosa.AdapterError, match=f"{layer.name}: values of its B are not finite"):
            rosa.resample(model, 3)
        assert all(one.equal(two) or one.isnan().all() for one, two in zip(values(model), before, strict=True))

    late = sharded(family, None)
    for action in (lambda: rosa.inject(late, config), lambda: rosa.load_adapter(late, folder)):
        with pytest.raises(rosa.AdapterError, match=r"sharded already: .*start=False"):
            action()


def check_disabled() -> None:
    """The base's function comes through the wrapper of DDP too; in shards it is refused where it would be wrong."""
    wrapped = DistributedDataParallel(rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2)))
    with rosa.disabled(wrapped):
        torch.testing.assert_close(logits(wrapped), logits(make_model("gpt2")), atol=1e-5, rtol=0)
    model = sharded("gpt2", rosa.LoraConfig(rank=2, modules_to_save=["ln_f"]), start=True)
    with pytest.raises(rosa.AdapterError, match="ln_f trains whole"), rosa.disabled(model):
        pass


def check_failure() -> None:
    """A process that fails in a resample takes the others with it; one process alone can adapt a model."""
    rank = dist.get_rank()
    if rank == 0:
        rosa.inject(make_model("llama"), rosa.RosaConfig(rank=2))
    model = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2))
    expected = logits(model)
    if rank == 1:
        layer = list(rosa.adapter_layers(model).values())[3]
        layer.sample = lambda *_: torch.empty(10**14)  # too large for any memory
    kind, text = (rosa.AdapterError, "process 1 could not resample") if rank == 0 else (RuntimeError, "memory")
    with pytest.raises(kind, match=text):
        rosa.resample(model, 1)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    check("gpt2", rosa.RosaConfig(rank=1), folder / "rosa")
    check("llama", rosa.LoraConfig(rank=3), folder / "lora")
    check_disabled()
    check_failure()


if __name__ == "__main__":
    with disconnect_at_end():
        try:
            main(Path(sys.argv[1]))
        except BaseException:
            traceback.print_exc()
            raise
