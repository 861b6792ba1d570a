"""Bridges to other libraries, imported only when asked for: ``rosa.integrations.trainer``, ``rosa.integrations.peft``."""
