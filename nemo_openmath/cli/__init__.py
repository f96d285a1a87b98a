"""The ``openmath`` command: one file for each group of verbs. They parse, call the library and print.

main.py        the line, its exit code, errors in one line
verbs.py       the groups of verbs in the order of the help
common.py      what the groups share; streams.py: output whose reader may leave, Ctrl-C
registry.py    what recipes can name: the product's kinds of stages and the demo's
"""
