"""The capacity study.

``make_base`` trains its base model, ``measure`` collects its runs, ``draws`` finds what later draws overwrite, and
``figure`` draws bits stored over the steps between resamples.
"""
