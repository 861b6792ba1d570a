"""``AdapterError``: an error that the user can fix, and ``OtherProcessError``."""


class AdapterError(ValueError):
    """The adapter's settings or files do not fit the model. The text names the layer or key, and what would fit."""


class OtherProcessError(AdapterError, RuntimeError):
    """Another process of this job failed, so that this one cannot go on. The other's own error says why."""
