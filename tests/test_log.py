"""How the log looks."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from resproxy import log


@pytest.fixture(autouse=True)
def _root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "text")
    logger = logging.getLogger("resproxy.server")
    logger.debug("hidden")
    logger.info("ready", extra={"listen": "unix:/r", "hint": 'a "b"', "empty": "", "n": 3})
    out, err = capsys.readouterr()
    assert out == ""
    when, rest = err.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when)
    assert rest == 'info ready listen=unix:/r hint="a \\"b\\"" empty="" n=3\n'


def test_one_line_only(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "text")
    logging.getLogger("asyncio").warning("two\n%s", "lines", extra={"field": "a\nb"})
    err = capsys.readouterr().err
    assert err.endswith('warning "two\\nlines" field="a\\nb" logger=asyncio\n')
    assert err.count("\n") == 1


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("debug", "json")
    error = OSError("boom")
    extra = {"level": "forged", "link": 2}
    logging.getLogger("resproxy").error("lost", exc_info=error, extra=extra)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line.pop("traceback").endswith("OSError: boom")
    assert line == {"level": "error", "event": "lost", "link": 2}


def test_second_setup_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "text")
    log.setup("error", "json")
    logging.getLogger("resproxy").error("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
