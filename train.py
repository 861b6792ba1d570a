#!/usr/bin/env python
"""Train: ``python train.py --help``. Every key is explained in configs/train.yaml."""

from __future__ import annotations

import os.path

if __name__ == "__main__":
    from utils.processes.signals import end_on_signals

    end_on_signals()  # before the imports, which take seconds

import hydra
from omegaconf import DictConfig, OmegaConf

OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)  # for hydra.sweep.dir


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(given: DictConfig) -> float | None:
    """Check the configuration and train. Returns the best validation loss, for Hydra's multirun."""
    import sys

    from hydra.core.hydra_config import HydraConfig

    from utils.io.hub import go_offline_without_network

    go_offline_without_network()  # before anything imports the hub's libraries
    from utils.config.settings import parse_config
    from utils.errors import UserError
    from utils.processes.group import EchoedError
    from utils.processes.signals import end_on_signals, ignore_signals

    end_on_signals()  # again, for a later job of a multirun
    try:
        config = parse_config(given)
        from utils.training.launch import train_all  # imports torch, which takes seconds

        loss = train_all(config, list(HydraConfig.get().overrides.task))
        ignore_signals()
        return loss
    except UserError as error:
        if not isinstance(error, EchoedError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    from utils.config.hydra_errors import hydra_errors_explained
    from utils.errors import print_anything
    from utils.processes.group import disconnect_at_end, end_with_launcher

    end_with_launcher()
    print_anything()
    with disconnect_at_end(), hydra_errors_explained():
        main()
