"""``AdapterError``: an error that the user can fix."""

CONVERTED = (
    "a resample would be rounded to 16 bits, because the model was converted after the adapter was added. Load the "
    "base model in 16 bits (dtype=torch.bfloat16) before it is adapted, or train under autocast"
)


class AdapterError(ValueError):
    """The adapter's settings or files do not fit the model. The text names the layer or key, and what would fit."""
