"""A grading process: reads frames of pairs from standard input, answers one frame per pair on standard output.

``main`` runs in a fresh interpreter (see pool.py) with the arguments TIME_LIMIT and MEMORY_MB, so it shares no memory,
lock or thread with its parent. It limits itself: address space by rlimit, each pair by an alarm that raises
inside Python, and, should a C call not return, by a second alarm that kills. Both count processor time, so that a busy
machine does not turn right answers into time-outs; the parent's wall clock stands above them (see pool.py).
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

from nemo_openmath.core.grader import Grade, Verdict, unknown
from nemo_openmath.grading.compare import compare

HEADER = struct.Struct("<I")  # length of the pickle that follows
SOFT_SHARE = 0.9  # of the limit: when the alarm that raises rings; the one that kills rings at the limit
OUT_OF_TIME = Grade(Verdict.TIMEOUT, "time limit")
OUT_OF_MEMORY = Grade(Verdict.TIMEOUT, "memory limit")


class OutOfTime(BaseException):
    """Raised by the alarm. It is not an Exception: code that catches Exception must not swallow it."""


def frame(value: Any) -> bytes:
    """Return a message with its length in front."""
    payload = pickle.dumps(value, protocol=5)
    return HEADER.pack(len(payload)) + payload


def read_frame(stream: BinaryIO) -> Any:
    """Return the next value, None at the end of the stream."""
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    return pickle.loads(stream.read(HEADER.unpack(head)[0]))


def guarded(predicted: str | None, expected: str | None, take_modulo: int | None, time_limit: float) -> Grade:
    """Compare under the alarms; whatever goes wrong becomes a verdict."""
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, time_limit)
            signal.setitimer(signal.ITIMER_PROF, time_limit * SOFT_SHARE)
            return compare(predicted, expected, take_modulo=take_modulo)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except OutOfTime:
        return OUT_OF_TIME
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:  # a defect of ours or of a library must cost one pair, not the batch
        return unknown(f"the grader failed: {type(error).__name__}")


def _ring(_signum: int, _frame: object) -> None:
    raise OutOfTime


def main() -> None:
    """Answer jobs from standard input until it ends."""
    time_limit, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    replies = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not write into the replies
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGPROF, _ring)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # kills, also in the middle of a C call
    os.write(replies, frame("ready"))
    while (job := read_frame(sys.stdin.buffer)) is not None:
        take_modulo, pairs = job
        for predicted, expected in pairs:
            grade = guarded(predicted, expected, take_modulo, time_limit)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            os.write(replies, frame((grade.verdict.value, grade.reason)))
