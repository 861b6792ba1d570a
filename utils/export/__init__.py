"""A run's model for other tools: ``python -m utils.export RUN --as {merged,peft,adapter}``.

``write.py`` writes the three forms; ``card.py`` their model card, README.md; ``folder.py`` makes the folder whole or
not at all; ``loss.py`` measures what a cut of the change costs.
"""
