"""What a session's process and its client share: two fixed-size frames and a block of shared memory.

A request is ``REQUEST`` followed by the code; its answer is ``REPLY``, exactly 24 bytes, which starts with the 16
random bytes of the request. Nothing else is ever valid on the wire: a byte too many, an answer without a request or
with other random bytes ends the session. Output does not travel: the process writes it into shared memory of fixed
size, so a flood costs nothing, and what was printed is there even if the process is killed.

    shared memory: u64 bytes of stdout | u64 bytes of stderr | stdout, ``capacity`` bytes | stderr, ``capacity`` bytes
"""

from __future__ import annotations

import struct
from mmap import mmap

REQUEST = struct.Struct("<16sddIQ")  # nonce, wall_s, cpu_s, bytes of output per stream, bytes of code
REPLY = struct.Struct("<16sQ")  # nonce, Outcome
NONCE_BYTES = 16
HEADER = struct.Struct("<QQ")
BYTES_PER_CHARACTER = 4  # at most, in UTF-8
MAX_CODE_BYTES = 1 << 20

# Outcomes in a reply. The process can tell nothing else: time, kills and cuts are judged outside of it.
FINISHED, RAISED, OUT_OF_TIME, OUT_OF_CPU, OUT_OF_MEMORY = range(5)


def memory_size(capacity: int) -> int:
    """Return the bytes of shared memory for streams of ``capacity`` bytes each."""
    return HEADER.size + 2 * capacity


def read_output(memory: mmap, capacity: int, characters: int) -> tuple[str, str, bool]:
    """Return (stdout, stderr, cut), each stream at most ``characters`` long. The process may have written anything
    there."""
    texts, cut = [], False
    for start, length in zip((0, capacity), HEADER.unpack_from(memory), strict=True):
        begin = HEADER.size + start
        used = min(length, capacity, characters * BYTES_PER_CHARACTER)
        text = memory[begin : begin + used].decode("utf-8", "replace")
        cut |= length > used or len(text) > characters
        texts.append(cut_note(text, characters) if length > used or len(text) > characters else text)
    return texts[0], texts[1], cut


def cut_note(text: str, characters: int) -> str:
    """Return ``text`` cut to ``characters``, with the visible note."""
    return f"{text[:characters]}\n[output cut after {characters} characters]\n"
