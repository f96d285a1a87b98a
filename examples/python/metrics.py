"""Say how good a model is, and how sure that is: pass@k and maj@k of one problem, the mean over problems with its 95%
interval, and the difference of two models problem by problem.

python examples/python/metrics.py
"""

import numpy as np

from nemo_openmath.evaluation import majority_at_k, pass_at_k, share_difference_interval, share_interval

# One problem: 64 samples, of which 40 say the right answer, 14 and 6 two wrong ones, and 4 nothing.
print("pass@1, pass@8:", round(pass_at_k(64, 40, 1), 3), round(pass_at_k(64, 40, 8), 6))
print("maj@8:", round(majority_at_k([40, 14, 6], [1.0, 0.0, 0.0], missing=4, ks=[8])[0], 3))

# A benchmark: the share of right samples of each of 200 problems, before and after a training.
rng = np.random.default_rng(seed=0)
before = rng.beta(2.0, 1.0, size=200)
after = np.clip(before + rng.normal(0.05, 0.08, size=200), 0.0, 1.0)
for name, values, interval in (
    ("before", before, share_interval(before)),
    ("after", after, share_interval(after)),
    ("difference", after - before, share_difference_interval(after - before)),
):
    print(f"{name}: {values.mean():+.1%} (95% interval {interval[0]:+.1%} to {interval[1]:+.1%})")
