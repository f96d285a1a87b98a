"""Published data -> SftRow records.

sources.py      files, folders and Hub datasets -> blocks of raw rows; which files belong to a split
formatting.py   one raw row -> an SftRow, or the reason why there is none
selection.py    which rows a training gets: rules of format; choice by mode, source and pass rate
conversion.py   a block of raw rows -> SFT rows, rejects and broken rows, in a worker process
prompt_recovery.py   questions -> the template that they were written with
questions.py    raw rows -> their questions, and the prompts of a whole file
stages.py       the stages sft.read and sft.select
"""
