"""The experiment around the adapters: configuration, data, training, evaluation, results."""
