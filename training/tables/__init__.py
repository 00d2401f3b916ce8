"""Slide tables of published data sets: ``python -m training.tables NAME ... --slides DIR --out slides.csv``.

One module a data set turns its label files, as they are published, into entries. `build` finds the slides,
writes the table that `training.data.table.read_table` reads, and says what is in it.
"""
