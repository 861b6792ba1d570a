"""Text from a trained model.

``generate.py`` is what training and evaluation call; ``prompts.py`` shortens prompts; ``tree/`` is this project's beam
search. Imports models, tokens and log.
"""
