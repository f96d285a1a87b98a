"""The loss certificate: what a right trainer reports of given packs and a given model, and what each known fault would.

    openmath certify PACKS MODEL --output cert.json          certify.py: which batches; every prediction; the file
    openmath diagnose LOSSES --certificate cert.json         diagnose.py: the losses of any trainer held against it
    training.certify: true                                   first_step.py: the same, in a training's own first step

reference.py    the model in one process, in fp32: the loss of each position, each sample alone
views.py        packs as a trainer sees them: padded, dealt to context ranks, their boundaries forgotten
faults/         the known faults, one function each
choose.py       packs whose losses tell the faults apart
files.py        cert.json and the CSV of losses; standard library alone
report.py       what is printed

A prediction is made by computing with the fault, not by a rule of thumb: the same model, with the packed parameters,
positions, labels or weights of samples that a trainer with this fault has.
"""
