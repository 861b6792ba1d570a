"""Models as they are trained: loading, the loss, and what makes both fast.

``loading.py`` loads model and tokenizer and checks them; ``token_loss.py`` computes the head where there is a loss;
``attention.py``, ``compilation.py`` and ``fast_modules.py`` speed up a model without changing what it computes.
"""
