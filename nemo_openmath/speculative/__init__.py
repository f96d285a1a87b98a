"""Speculative decoding: a small drafter guesses the next tokens, the model checks all guesses in one pass.

The drafter itself and its files are models/drafters.py, below the engines that compute with it.

texts.py         a model's own generations as tokens; which of them are held out; which tokens are frequent
sources.py       the same, read for a stage, or why there is nothing to train on
batches.py       which texts a step reads together
frozen.py        the model that is drafted for: where it runs, its hidden states
kind.py          what the training asks of a kind of drafter
redrafter.py     ReDrafter's loss and guesses
eagle3.py        EAGLE-3's loss and guesses
soft_loss.py     cross-entropy against what another head says
settings.py      how a drafter is trained
train.py         training on the frozen model, measuring on held-out generations
saved_state.py   the training's state on disk: a killed one goes on
acceptance.py    how many guesses are accepted, by position and in a step
report.py        these numbers as JSON and as a page
decode.py        greedy decoding with a drafter, equal to greedy decoding without one
stage.py         training as a stage of a recipe
"""
