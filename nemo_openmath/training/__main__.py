"""``python -m nemo_openmath.training``: see :mod:`nemo_openmath.training.launch`."""

import sys

from nemo_openmath.training.launch import main

sys.exit(main())
