"""Models for training and generation: loading, the loss, and faster ways to compute the same.

``loading.py`` loads model and tokenizer and checks them, ``gguf.py`` unpacks a GGUF file; ``token_loss.py`` computes
the loss at labelled positions, ``losses.py`` that of a data set; ``attention.py``, ``compilation.py`` and
``fast_modules.py`` speed up a model without changing what it computes, and ``frozen_blocks.py`` keeps what its frozen
blocks gave, in ``frozen_file.py`` also for other runs; ``causality.py`` refuses models that are not causal;
``sharing_trial.py`` checks whether an evaluation may read each prompt once; ``modes.py`` switches evaluation mode on
for a while.
"""
