"""From packs to the batches of a training run, and of each of its ranks."""
