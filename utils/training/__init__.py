"""Training one run.

``launch.py`` goes from a configuration to finished runs. ``setup.py`` loads and builds the parts of a training, which
``training.py`` holds. ``loop.py`` is the loop: epoch, step, log, validation. ``resume.py`` saves and restores.
``data.py``: both training splits; ``optimizers.py``: optimizers and schedulers; ``placement.py``: the model on one
process or many; ``loss_meter.py``: loss and speed between logging points; ``samples.py``: texts for a validation;
``record.py``: the content of run.json; ``dry_run.py``: what a run would take in memory and time; ``failures.py``:
errors that come with advice.
"""
