"""What a recipe costs before it is run: GPU-hours, processor hours, time along the job graph, disk, lost work.

Everything is arithmetic by stated inputs. Nothing here was measured on a GPU.

assumptions.py  the numbers that no setting says, their origin, and how a recipe or a command line changes them
counts.py       how many records each stage leaves
models.py       which model a stage trains or asks, and its sizes
trainings.py    a training stage as a workload: memory, time, the layouts that fit
decoding.py     tokens a second of a model on GPUs: memory and computing that decoding wants
requests.py     what each stage asks its models
storage.py      bytes on disk by stage
saving.py       what a training loses to saving and to failures, at its own interval and at the best
processors.py   records a second of the stages that need no model
timetable.py    when each stage ends, by what reads what and by servers that are shared
whole.py        a recipe on a cluster: every job's hours, and the time of the whole graph
command.py      what `openmath plan RECIPE` does
tables.py       the answer as text and tables
as_json.py      the same for programs
"""
