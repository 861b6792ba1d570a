"""Tokenizers of the official scorer."""
