"""The configuration of a training run, and its errors.

``settings.py`` has every key of configs/train.yaml, typed, and checks them; those of ``train`` are in ``train.py``.
``schema.py`` compares given keys with the typed ones, ``fnmodel.py`` makes the keys of the methods from their settings,
and ``hydra_errors.py`` says Hydra's own errors in this project's words.
"""
