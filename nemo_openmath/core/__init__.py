"""The ground that every other package stands on.

errors.py      the errors a user can meet, and the exit code of each
records/       typed records with content-derived ids, the append-only store, manifests, lineage, foreign files
engine.py      the protocol of whatever generates text
sandbox.py     the protocol of whatever runs a model's Python
grader.py      the protocol of whatever compares answers and counts votes; tokenizer.py: of a model's tokenizer
stage/         the Stage contract: what a step of a recipe reads, writes, drops and retries
build.py       values of a YAML file into typed settings; config.py: the file and its overrides
merging.py     the shards of an array of jobs into one result
logs.py        how log messages look, decided once in a process
progress.py, clock.py, waiting.py, processes.py, listening.py, locks.py, bounds.py     small tools of long work
"""
