"""``AdapterError``: what a user can change."""


class AdapterError(ValueError):
    """The adapter's settings or files do not fit the model; the text says which layer or key, and what would."""
