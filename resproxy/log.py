"""Owns how the log looks: one event with its fields a line, as text or JSON, on stderr.

`logger.info("ready", extra={"listen": "127.0.0.1:6380"})` becomes
`2026-01-31T12:00:00.123Z info ready listen=127.0.0.1:6380`. An event is a short fixed text, what
varies is a field. Never log a password (addresses have a `display` without), never on a hot path.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

# What `logging` itself puts into a record; all else came as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(level: str, style: Literal["text", "json"]) -> None:
    """Log from `level` (debug, info, warning, error) upwards to stderr, other libraries' logs too.

    A second call replaces the first.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        words = [_time(record), record.levelname.lower()]
        words.append(event if event.isprintable() else json.dumps(event))
        words += [f"{name}={_quoted(str(value))}" for name, value in _fields(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = _fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # Last, so that no field can stand in for them.
        line |= {"time": _time(record), "level": record.levelname.lower()}
        line |= {"event": record.getMessage()}
        return json.dumps(line, default=str)


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if record.name.partition(".")[0] != "resproxy":
        fields["logger"] = record.name
    return fields


def _quoted(value: str) -> str:
    """As it is where that can be read back without doubt, else as a JSON string."""
    plain = value and value.isprintable() and not any(char in value for char in ' "=')
    return value if plain else json.dumps(value)
