"""``python -m nemo_openmath.training.certificate JOB.yaml [key=value ...] --processes N``: the certificate of a job's
first step, made by one process before the ranks start."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from nemo_openmath.core.errors import ExitCode, OpenMathError
from nemo_openmath.core.logs import ConsoleHandler, configure_logging
from nemo_openmath.core.processes import die_with_parent
from nemo_openmath.training.certificate.alone import world_of_one
from nemo_openmath.training.certificate.first_step import make
from nemo_openmath.training.job import read_job


def main() -> int:
    """Run the command line of this module's text."""
    die_with_parent()
    configure_logging(handler=ConsoleHandler("stdout"))
    parser = argparse.ArgumentParser(prog="python -m nemo_openmath.training.certificate")
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_intermixed_args()
    try:
        job = read_job(options.job, options.overrides)
        with world_of_one(job.training.device):
            make(job, options.processes)
    except OpenMathError as error:
        print(error, file=sys.stderr, flush=True)
        return int(error.exit_code)
    except Exception as error:
        print(f"{traceback.format_exc()}\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return int(ExitCode.FAILURE)
    return int(ExitCode.OK)


code = main()
sys.stdout.flush()
os._exit(code)
