"""The ground that every other package stands on.

Data:

    records/       typed records with content-derived ids, the append-only store, manifests, lineage, foreign files
    merging.py     equal records of several units become one
    tags.py        the tags that released models and data use

Contracts:

    stage/         the Stage contract: what a step of a recipe reads, writes, drops and retries
    engine.py      the protocol of whatever generates text
    sandbox.py     the protocol of whatever runs a model's Python
    grader.py      the protocol of whatever compares answers and counts votes
    tokenizer.py   the protocol of a model's tokenizer with its chat template
    clock.py       the protocol of a clock, and the machine's own
    errors.py      the errors a user can meet, and the exit code of each

Settings:

    config.py      a YAML file and its overrides, each value with its origin
    build.py       plain values into typed settings; bounds.py: their ranges

Paths that users name:

    nearby.py      what a user may have meant by a path that is not what a command takes
    outputs.py     what a command writes takes the place of nobody's files

Small tools of long work: logs.py, progress.py, waiting.py, processes.py, listening.py, locks.py.
"""
