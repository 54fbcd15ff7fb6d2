"""Hypothesis strategies that several tests share: replies and bad bytes, as on the wire."""

from __future__ import annotations

from hypothesis import strategies as st

# What RESP itself is made of, so that bulks look like frames and mutations make near misses.
_MEANINGFUL = [b"\r\n", b"\r", b"\n", b"\0", b"$", b"*", b">", b"|", b"-", b"+", b":", b"0", b"1"]
_FRAGMENTS = [
    *_MEANINGFUL,
    b"$3\r\n",
    b"*1\r\n",
    b"+OK\r\n",
    b"-ERR x\r\n",
    b">1\r\n",
    b"\xff",
    b"a",
]

payloads = st.lists(st.sampled_from(_FRAGMENTS), max_size=6).map(b"".join) | st.binary(max_size=24)
"""Any bytes, often such as look like RESP."""

_LINE_BYTES = st.sampled_from([byte for byte in range(256) if byte not in b"\r\n"])
_lines = st.lists(_LINE_BYTES, max_size=12).map(bytes)


def _bulk(kind: bytes, payload: bytes) -> bytes:
    return b"%b%d\r\n%b\r\n" % (kind, len(payload), payload)


def _numbers() -> st.SearchStrategy[bytes]:
    integers = st.integers(-(2**63), 2**63 - 1).map(lambda n: b":%d\r\n" % n)
    big = st.integers(-(10**40), 10**40).map(lambda n: b"(%d\r\n" % n)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    doubles = finite.map(lambda number: b",%b\r\n" % repr(number).encode())
    odd = st.sampled_from([b",inf\r\n", b",-inf\r\n", b",nan\r\n", b"#t\r\n", b"#f\r\n"])
    return integers | big | doubles | odd


strings = st.one_of(
    _lines.map(lambda line: b"+%b\r\n" % line),
    _lines.map(lambda line: b"-ERR %b\r\n" % line),
    payloads.map(lambda payload: _bulk(b"$", payload)),
    payloads.map(lambda payload: _bulk(b"=", b"txt:" + payload)),
)
nulls = st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"_\r\n"])
scalars = strings | nulls | _numbers()


def _aggregates(kinds: str, items: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def frame(kind: str, parts: list[bytes]) -> bytes:
        return b"%b%d\r\n%b" % (kind.encode(), len(parts), b"".join(parts))

    return st.builds(frame, st.sampled_from(kinds), st.lists(items, max_size=4))


def _maps(
    kind: bytes, keys: st.SearchStrategy[bytes], items: st.SearchStrategy[bytes]
) -> st.SearchStrategy[bytes]:
    pairs = st.lists(st.tuples(keys, items).map(b"".join), max_size=3)
    return pairs.map(lambda parts: b"%b%d\r\n%b" % (kind, len(parts), b"".join(parts)))


def _nested(items: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    # hiredis makes dicts of maps, so their keys are hashable here.
    return _aggregates("*~", items) | _maps(b"%", scalars, items)


def _nested_beyond_hiredis(items: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    attributed = st.tuples(_maps(b"|", items, items), items).map(b"".join)
    return _aggregates("*~", items) | _maps(b"%", items, items) | attributed


replies = st.recursive(scalars, _nested, max_leaves=12)
"""One whole reply, of the kinds that hiredis reads."""

every_reply = st.recursive(
    scalars | payloads.map(lambda payload: _bulk(b"!", payload)),
    _nested_beyond_hiredis,
    max_leaves=12,
)
"""One whole reply of any kind: also blob errors, attributes, and aggregates as the keys of maps."""

pushes = _aggregates(">", every_reply)
"""One whole push."""


def cuts(size: int) -> st.SearchStrategy[list[int]]:
    """Where to split `size` bytes: offsets in order, `size` among them."""
    return st.lists(st.integers(0, size), max_size=8).map(lambda found: sorted({*found, size}))


@st.composite
def mutated(draw: st.DrawFn, original: st.SearchStrategy[bytes], most: int = 4) -> bytes:
    """Good bytes with up to `most` bytes or fragments changed, put in or taken out."""
    data = bytearray(draw(original))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.sampled_from(_FRAGMENTS) | st.binary(min_size=1, max_size=1))
        length = draw(st.sampled_from([0, 1, 1, 2]))
        data[at : at + length] = b"" if draw(st.booleans()) and length else new
    return bytes(data)
