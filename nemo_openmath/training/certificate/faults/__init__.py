"""The known faults of trainers on packed samples: for each, the loss of a batch that a trainer with it reports.

A fault is a function of a :class:`~nemo_openmath.training.certificate.faults.batch.CertifiedBatch` that yields a
prediction for each of its variants (a pipeline of 3 or of 4 stages, padding to 4 or to 8 tokens). Sources are issues
and pull requests in which it was reported. All predictions are of one fault at a time.

batch.py      what a fault computes with and what it yields
model.py      attention, positions, weights
targets.py    what counts in the loss, and what a position is trained to give
padding.py    padding that counts, tokens that are lost
means.py      by what the sum of the losses is divided
context.py    context parallelism
known.py      all of them
"""
