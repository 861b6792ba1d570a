"""The capacity study.

``make_base`` trains its base model, ``measure`` collects its runs, ``draws`` finds what later draws overwrite, and
``report`` prints the tables, ``figure`` draws bits stored over the size of the book.
"""
