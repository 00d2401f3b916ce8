"""The benchmark: heads and distillation objectives under one protocol, each a row of one run, in one table.

`rows` says which rows there are, `trials` tries each in a process of its own, `costs` counts what a row computes, `table` puts
numbers, intervals and costs together, `write` prints and saves them.
"""
