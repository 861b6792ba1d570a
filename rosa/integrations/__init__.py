"""Bridges to other libraries, imported only when asked for: ``trainer`` (transformers' Trainer) and ``peft``."""
