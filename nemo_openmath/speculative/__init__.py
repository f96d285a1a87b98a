"""Speculative decoding: a small drafter guesses the next tokens, the model checks all guesses in one pass.

The drafter itself and its files are models/drafters.py, below the engines that compute with it.

texts.py         a model's own generations as tokens; which of them are held out
train.py         training on a frozen model; accepted tokens on held-out generations
decode.py        greedy decoding with a drafter, equal to greedy decoding without one
stage.py         training as a stage of a recipe
"""
