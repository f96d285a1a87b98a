"""A plan of packs -> the batches of a training run, and the share of each rank.

source.py           how packs make up a batch; the protocol that a training reads from
packed_data.py      that protocol over a plan
epoch_order.py      the order of packs in each epoch
held_out.py         a share of the samples for the validation loss
balance.py          packs assigned to ranks by attention cost
batch_sharding.py   a batch's packs or samples shared out to ranks and padded for the layout
"""
