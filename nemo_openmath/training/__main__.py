"""``python -m nemo_openmath.training JOB.yaml --processes N [key=value ...]``: a training on this machine's processes.

One process that owns its ranks: when it dies they die, and what ends a rank ends it with the same exit code.
"""

from __future__ import annotations

import argparse
import sys

from nemo_openmath.core.errors import ExitCode, OpenMathError
from nemo_openmath.core.processes import die_with_parent
from nemo_openmath.training.launch import RankFailed, launch


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m nemo_openmath.training", description=__doc__)
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_intermixed_args()  # key=value may come after --processes
    try:
        launch(
            options.processes,
            options.job,
            overrides=options.overrides,
            threads=options.threads,
            on_line=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except OpenMathError as error:
        if isinstance(error, RankFailed):
            print(error.said, file=sys.stderr)
        print(error, file=sys.stderr, flush=True)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
