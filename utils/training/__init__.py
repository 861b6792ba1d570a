"""Training one run.

``launch.py`` goes from a configuration to finished runs. ``setup.py`` loads and builds what a training needs, and
``training.py`` holds it. ``loop.py`` is the loop: epoch, step, log, validation. ``resume.py`` saves and restores.
``data.py``: both training splits; ``optimizers.py``: optimizers and schedulers; ``placement.py``: the model on one
process or many; ``loss_meter.py``: loss and speed between logging points; ``samples.py``: texts for a validation;
``record.py``: what run.json says; ``failures.py``: errors that come with advice.
"""
