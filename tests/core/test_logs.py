"""Log messages are bare lines, each once, wherever standard error leads when they come."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from nemo_openmath.core import logs
from nemo_openmath.core.logs import ConsoleHandler, configure_logging

log = logging.getLogger("nemo_openmath.training.example")


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    logger = logging.getLogger(logs.LOGGER)
    level, before = logger.level, logs._configured
    yield
    if logs._configured is not None:
        logger.removeHandler(logs._configured)
    if before is not None:
        logger.addHandler(before)
    logs._configured = before
    logger.setLevel(level)


def test_each_message_is_one_bare_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()  # a command that runs another configures twice
    log.debug("details")
    log.info("resuming after step %d", 7)
    log.warning("the weights sum to 4")
    logging.getLogger("another.library").info("chatter")
    assert capsys.readouterr().err == "resuming after step 7\nthe weights sum to 4\n"


def test_only_rank_0_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        configure_logging(handler=ConsoleHandler("stdout"), rank=rank)
        log.warning("rank %d", rank)
        log.error("rank %d fails", rank)
    assert capsys.readouterr().out == "rank 0\nrank 0 fails\nrank 1 fails\n"
