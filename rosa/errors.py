"""``AdapterError``: an error that the user can fix."""


class AdapterError(ValueError):
    """The adapter's settings or files do not fit the model. The text names the layer or key, and what would fit."""
