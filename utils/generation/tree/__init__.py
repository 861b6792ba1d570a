"""Beam search over a tree of tokens: the beams of a prompt share its cache, and no step copies or waits for anything.

``loop.py`` generates for a batch of prompts; ``search.py`` chooses tokens among those that ``candidates.py`` finds;
``cache.py`` holds keys and values; ``support.py`` says which models can be served. The texts are those of transformers'
``generate``.
"""
