"""Owns inline commands: splitting a line into arguments as Redis does (sds.c: sdssplitargs)."""

from __future__ import annotations

_SPACES = b" \n\r\t\v\f"
_ESCAPES = {b"n"[0]: 10, b"r"[0]: 13, b"t"[0]: 9, b"b"[0]: 8, b"a"[0]: 7}
_HEX = b"0123456789abcdefABCDEF"
_QUOTE, _APOSTROPHE, _BACKSLASH = b"\"'\\"


def split_inline(line: bytes) -> list[bytes] | None:
    r"""The arguments of an inline command; None where its quotes are not balanced.

    line: without its LF; a trailing CR counts as white space. Double quotes know \xHH and
    \n \r \t \b \a, single quotes only \'; a closing quote must be followed by white space.
    """
    arguments: list[bytes] = []
    at, size = 0, len(line)
    while True:
        while at < size and line[at] in _SPACES:
            at += 1
        if at == size:
            return arguments
        argument = bytearray()
        quote = 0
        while True:
            if at == size:
                if quote:
                    return None
                break
            char = line[at]
            if not quote:
                # Inside a word only these four end it: sdssplitargs differs from isspace() here.
                if char in b" \n\r\t":
                    break
                if char in (_QUOTE, _APOSTROPHE):
                    quote = char
                else:
                    argument.append(char)
                at += 1
            elif char == quote:
                at += 1
                if at < size and line[at] not in _SPACES:
                    return None
                break
            elif char == _BACKSLASH and at + 1 < size:
                at = _escape(line, at, quote, argument)
            else:
                argument.append(char)
                at += 1
        arguments.append(bytes(argument))


def _escape(line: bytes, at: int, quote: int, argument: bytearray) -> int:
    """Append what the backslash at `at` stands for; returns where to read on."""
    following = line[at + 1]
    if quote == _APOSTROPHE:
        if following == _APOSTROPHE:
            argument.append(_APOSTROPHE)
            return at + 2
        argument.append(_BACKSLASH)
        return at + 1
    digits = line[at + 2 : at + 4]
    if following == b"x"[0] and len(digits) == 2 and all(d in _HEX for d in digits):
        argument.append(int(digits, 16))
        return at + 4
    argument.append(_ESCAPES.get(following, following))
    return at + 2
