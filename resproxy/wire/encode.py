"""Owns what the proxy itself writes in RESP: its own commands upstream and its local replies."""

from __future__ import annotations

from collections.abc import Iterable

OK = b"+OK\r\n"


def command(*arguments: bytes) -> bytes:
    """A request: an array of bulk strings."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts.extend(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)
    return b"".join(parts)


def error(text: str | bytes) -> bytes:
    """An error reply; text begins with its code (ERR, NOAUTH, …) and has no line breaks."""
    raw = text.encode() if isinstance(text, str) else text
    return b"-" + raw.replace(b"\r", b" ").replace(b"\n", b" ") + b"\r\n"


def bulk(value: bytes) -> bytes:
    """A bulk string reply."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def null(resp: int) -> bytes:
    """The null of this RESP version where Redis uses a null bulk string in RESP2."""
    return b"_\r\n" if resp == 3 else b"$-1\r\n"


def value(item: object, resp: int) -> bytes:
    """A decoded value (bytes, str, int, None, list, dict) as a reply of this RESP version.

    A dict becomes a map in RESP3 and a flat array in RESP2. Raises TypeError for anything else.
    """
    if item is None:
        return null(resp)
    if isinstance(item, bool):
        return (b"#t\r\n" if item else b"#f\r\n") if resp == 3 else b":%d\r\n" % item
    if isinstance(item, int):
        return b":%d\r\n" % item
    if isinstance(item, str):
        return bulk(item.encode())
    if isinstance(item, bytes):
        return bulk(item)
    if isinstance(item, dict):
        head = b"%%%d\r\n" % len(item) if resp == 3 else b"*%d\r\n" % (2 * len(item))
        return head + _join((part for pair in item.items() for part in pair), resp)
    if isinstance(item, list):
        return b"*%d\r\n" % len(item) + _join(item, resp)
    raise TypeError(f"no RESP form for {type(item).__name__}")


def _join(items: Iterable[object], resp: int) -> bytes:
    return b"".join(value(item, resp) for item in items)
