"""The capacity study.

``make_base`` trains its base model, ``measure`` collects its runs, ``report`` prints its tables.
"""
