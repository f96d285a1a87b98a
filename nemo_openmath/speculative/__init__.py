"""Speculative decoding: a small drafter guesses the next tokens, the model checks all guesses in one pass.

model.py         ReDrafter (arXiv 2403.09919): a recurrent state, residual blocks, a head; its file format
texts.py         a model's own generations as tokens; which of them are held out
train.py         training on a frozen model; accepted tokens on held-out generations
decode.py        greedy decoding with a drafter, equal to greedy decoding without one
stage.py         training as a stage of a recipe
"""
