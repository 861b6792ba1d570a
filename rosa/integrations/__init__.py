"""Bridges to other libraries: ``trainer`` (transformers' Trainer) and ``peft``. Nothing here is imported by default."""
