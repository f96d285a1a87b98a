"""What the tokens of a run bought: how many samples that the filters keep, of which problems, by which model.

samples.py      which stages are counted; each sample with its tokens and what the filters did with it
counting.py     sums by model, mode and class of problems, problem by problem
suggestions.py  what the sums say about the next run, where they say enough
measure.py      all of it, for the report
"""
