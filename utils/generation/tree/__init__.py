"""Beam search over a tree of tokens: the beams of a prompt share its cache, and no step copies or waits for anything.

``loop.decode`` is what the rest of the project calls. The texts are those of transformers' ``generate``.
"""
