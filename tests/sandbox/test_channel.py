"""A hostile process at the other end of the wire, and in the shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import subprocess

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_openmath.sandbox import Limits, Status, channel
from nemo_openmath.sandbox.process import SessionProcess
from nemo_openmath.sandbox.walls import Shape
from tests.support.waiting import until

SHAPE = Shape(memory_mb=64, open_files=16, file_mb=1, capacity=400)
LIMITS = Limits(wall_s=300, cpu_s=300, output_chars=100)

# What the process may send back: pieces of the true answer, damaged answers, anything.
pieces = st.lists(
    st.one_of(
        st.just("nonce"),
        st.builds(lambda n: n.to_bytes(8, "little"), st.integers(0, 8)),
        st.builds(lambda n: n.to_bytes(8, "little"), st.integers(0, 2**64 - 1)),
        st.binary(max_size=64),
        st.just(bytes(24)),
        st.just(b"\xff" * 100_000),
    ),
    min_size=1,
    max_size=4,
)


def incomplete(sent: bytes, nonce: bytes) -> bool:
    """Whether the true answer may still come."""
    return nonce.startswith(sent[: channel.NONCE_BYTES]) and len(sent) < channel.REPLY.size


async def answer(parts: list, shared: bytes) -> tuple:
    """One execution whose process is `sleep` and whose answers are ours: (ending, output, bytes sent, nonce)."""
    peer = subprocess.Popen(["sleep", "600"])  # noqa: ASYNC220
    ours, theirs = socket.socketpair()
    memory = mmap.mmap(-1, channel.memory_size(SHAPE.capacity))
    process = SessionProcess(os.pidfd_open(peer.pid), memory, SHAPE, "/nonexistent")
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(lambda: process, sock=ours)
        theirs.setblocking(False)
        await loop.sock_sendall(theirs, channel.REPLY.pack(bytes(channel.NONCE_BYTES), channel.FINISHED))
        assert (await process.ready()).outcome == channel.FINISHED

        async def hostile() -> bytes:
            request = await loop.sock_recv(theirs, channel.REQUEST.size)
            nonce = request[: channel.NONCE_BYTES]
            memory[: len(shared)] = shared
            sent = b"".join(nonce if part == "nonce" else part for part in parts)
            with contextlib.suppress(OSError):  # hung up on, rightly
                await loop.sock_sendall(theirs, sent)
            if incomplete(sent, nonce):
                await until(lambda: process._buffer == sent)
                process._started -= 10**6  # its time is over
            return sent + b"|" + nonce

        (ending, _), sent = await asyncio.gather(process.run(b"pass", LIMITS), hostile())
        await asyncio.sleep(0)
        return (
            ending,
            process.output(LIMITS.output_chars),
            sent[: -channel.NONCE_BYTES - 1],
            sent[-channel.NONCE_BYTES :],
        )
    finally:
        process.kill()
        peer.wait()
        process.release()
        theirs.close()


@given(parts=pieces, shared=st.binary(max_size=channel.memory_size(SHAPE.capacity)))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_only_the_one_true_answer_is_taken(parts: list, shared: bytes) -> None:
    ending, (stdout, stderr, _), sent, nonce = asyncio.run(answer(parts, shared))
    note = len(channel.cut_note("", LIMITS.output_chars))
    assert max(len(stdout), len(stderr)) <= LIMITS.output_chars + note
    true = [nonce + outcome.to_bytes(8, "little") for outcome in range(5)]
    if ending.outcome is not None:
        assert sent[:24] in true  # more may have come a moment later: it ends the session then
    elif sent in true:
        raise AssertionError("a true answer was refused")
    elif incomplete(sent, nonce):
        assert ending.status == Status.TIMEOUT
    else:
        assert ending.status == Status.KILLED


@given(
    texts=st.tuples(st.text(max_size=120), st.text(max_size=120)),
    claimed=st.none() | st.tuples(*[st.integers(0, 2**64 - 1)] * 2),
)
def test_output_is_what_was_written_or_cut_with_a_note(texts: tuple[str, str], claimed: tuple[int, int] | None) -> None:
    memory = mmap.mmap(-1, channel.memory_size(SHAPE.capacity))
    data = [text.encode("utf-8", "replace")[: SHAPE.capacity] for text in texts]
    for stream, part in enumerate(data):
        start = channel.HEADER.size + stream * SHAPE.capacity
        memory[start : start + len(part)] = part
    channel.HEADER.pack_into(memory, 0, *(claimed or map(len, data)))
    shown = channel.read_output(memory, SHAPE.capacity, 100)
    for text, got in zip(texts, shown, strict=False):
        if claimed is None:
            text = text.encode("utf-8", "replace").decode()
            assert got == (text if len(text) <= 100 else channel.cut_note(text, 100))
        assert len(got) <= 100 + len(channel.cut_note("", 100))
