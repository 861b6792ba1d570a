"""Text made from facts by rules: the bundled data set and the pretraining text of the bundled model."""
