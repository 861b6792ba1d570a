"""``AdapterError``: what a user can change."""


class AdapterError(ValueError):
    """The adapter's settings or files do not fit the model. The text names the layer or key, and what would fit."""
