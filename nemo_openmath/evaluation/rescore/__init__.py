"""Score stored generations again, without generating anything: another grader, judge, token limit or subset.

limit.py      what a generation would have been under a smaller token limit
verdicts.py   the answer and the verdict of a generation by today's grader, and by the judges that were asked
note.py       what a generation said before, which it keeps
stage.py      the stage ``evaluation.rescore``: generations -> the same generations with new verdicts
changes.py    which verdicts changed and why, what that does to each metric, and which problems turn
changes_stage.py   the stage ``evaluation.changes``
"""
