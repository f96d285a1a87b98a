"""From token files to packs: which samples lie together in a sequence of the training length."""
