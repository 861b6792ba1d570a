"""The slots of an E2E meaning representation that a text mentions.

``meaning.py`` parses a meaning representation. ``mentions.py`` finds the values in a text and compares them with it.
``patterns.py`` has the regular expressions. Imports nothing of this project.
"""
