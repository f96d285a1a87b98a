"""All known faults, in the order in which they are computed and told."""

from __future__ import annotations

from nemo_openmath.training.certificate.faults import context, means, model, padding, targets
from nemo_openmath.training.certificate.faults.batch import Fault

FAULTS: tuple[Fault, ...] = (*model.FAULTS, *targets.FAULTS, *padding.FAULTS, *means.FAULTS, *context.FAULTS)
