"""Text from a trained model.

``generate.py`` is what training and evaluation call; ``decoding.py`` has the options; ``prompts.py`` shortens prompts;
``padding.py`` finds models that must not be padded; ``tree/`` is this project's beam search.
"""
