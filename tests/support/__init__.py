"""What tests of several packages share.

engines.py      models that say what a test wants: behind the product's HTTP engine, and as an engine in this process
servers.py      HTTP servers on a port of loopback
services.py     what a stage is lent in a test, and a way to run one over given records
rows.py         training rows
models.py       small random models as folders
settings.py     the classes of all settings
tokenizers.py   small tokenizers
ranks.py        real processes of a training
waiting.py      waiting for a condition, not for some time
disk.py         a disk that is full
"""
