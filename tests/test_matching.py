"""The order of replies: random traffic on one link, every byte of it accounted for."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from strategies import every_reply, pushes

from resproxy.matching import Expectation, Matcher
from resproxy.wire.replies import ProtocolError

CLIENTS = 4  # at a time


class Client:
    """A sink that writes down what it is told."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.output = b""
        self.due = 0
        self.left = False
        self.last: Expectation | None = None
        self.kept_back: list[bytes] = []  # replies to what is sent once nothing is due

    def send(self, replies: list[bytes]) -> None:
        """Commands go out; this is what they will be answered with."""
        self.due += len(replies)
        self.last = self.link.matcher.expect(self, len(replies))
        for data in replies:
            self.link.append(self, data)

    def replies(
        self, data: bytes | bytearray, start: int, end: int, whole: int, after: bytes | None
    ) -> None:
        assert 0 <= start < end <= len(data)
        assert 0 <= whole <= self.due
        self.due -= whole
        if not self.left:
            self.output += data[start:end] + (after or b"")
        if self.due == 0 and self.kept_back:
            self.send([self.kept_back.pop()])

    def link_lost(self, reason: str, inside: bool) -> None:
        self.link.lost.append((self, reason, inside))


@dataclass
class Item:
    """A reply, or a push, in the link's stream."""

    client: Client | None  # None: a push
    data: bytes
    start: int
    after: bytes = b""

    @property
    def end(self) -> int:
        return self.start + len(self.data)


@dataclass
class Link:
    """What the server sends, how much of it has been fed, and to whom it belongs."""

    matcher: Matcher = field(default_factory=Matcher)
    stream: bytes = b""
    fed: int = 0
    items: list[Item] = field(default_factory=list)
    lost: list[tuple[Client, str, bool]] = field(default_factory=list)

    def append(self, client: Client | None, data: bytes) -> None:
        self.items.append(Item(client, data, len(self.stream)))
        self.stream += data

    def feed(self, size: int) -> None:
        """Let the next `size` bytes arrive."""
        data = bytearray(self.stream[self.fed : self.fed + size])
        size = len(data)
        self.fed += size
        # What lies behind the data must not be looked at.
        self.matcher.feed(data + b"\0?", size)

    def due(self) -> list[Item]:
        return [item for item in self.items if item.client is not None and item.end > self.fed]

    def output(self, client: Client) -> bytes:
        """What the client must have got by now."""
        found = b""
        for item in self.items:
            if item.client is client:
                found += item.data[: max(0, self.fed - item.start)]
                found += item.after if item.end <= self.fed else b""
        return found


class Traffic(RuleBasedStateMachine):
    """Commands, replies, pushes, clients that leave and links that die, in any order."""

    names = st.integers(0, CLIENTS - 1)

    @initialize()
    def connect(self) -> None:
        self.link = Link()
        self.clients = [Client(self.link) for _ in range(CLIENTS)]
        self.gone: list[Client] = []

    @rule(name=names, replies=st.lists(every_reply, min_size=1, max_size=4))
    def send(self, name: int, replies: list[bytes]) -> None:
        self.clients[name].send(replies)

    @rule(name=names, reply=every_reply)
    def send_from_within_a_reply(self, name: int, reply: bytes) -> None:
        client = self.clients[name]
        if client.due:
            client.kept_back.append(reply)

    @rule(name=names, local=st.sampled_from([b"+LOCAL 1\r\n", b"$0\r\n\r\n"]))
    def answer_locally(self, name: int, local: bytes) -> None:
        client = self.clients[name]
        if client.due:
            assert client.last is not None
            client.last.follow(local)
            [item for item in self.link.due() if item.client is client][-1].after += local

    @rule(name=names)
    def leave(self, name: int) -> None:
        client, self.clients[name] = self.clients[name], Client(self.link)
        client.left = True
        client.kept_back.clear()
        self.gone.append(client)

    @rule(data=pushes)
    def push(self, data: bytes) -> None:
        self.link.append(None, data)

    @precondition(lambda self: self.link.fed < len(self.link.stream))
    @rule(size=st.integers(1, 60) | st.just(1 << 30))
    def feed(self, size: int) -> None:
        self.link.feed(size)

    @rule()
    def fail(self) -> None:
        due, lost = self.link.due(), self.link.lost
        waiting = list(dict.fromkeys(id(item.client) for item in due))
        inside = bool(due) and due[0].start < self.link.fed
        self.link.matcher.fail("reason")
        # Oldest first; one that waits in several places may be told of each.
        assert list(dict.fromkeys(id(client) for client, _, _ in lost)) == waiting
        assert all(reason == "reason" for _, reason, _ in lost)
        assert [cut for _, _, cut in lost] == [inside and index == 0 for index in range(len(lost))]
        assert self.link.matcher.due == 0
        told = len(lost)
        self.link.matcher.fail("again")
        assert len(lost) == told
        self.connect()

    @rule(extra=every_reply)
    def answer_what_nobody_asked(self, extra: bytes) -> None:
        self.link.feed(1 << 30)
        while self.link.fed < len(self.link.stream):  # what was sent from within
            self.link.feed(1 << 30)
        with pytest.raises(ProtocolError, match="nobody waits for"):
            self.link.matcher.feed(extra, len(extra))
        self.fail()

    @invariant()
    def everybody_has_its_own(self) -> None:
        assert self.link.matcher.due == len(self.link.due())
        for client in self.clients:
            assert client.output == self.link.output(client)
        for client in (*self.clients, *self.gone):
            assert client.due == sum(item.client is client for item in self.link.due())


TestTraffic: Any = Traffic.TestCase
TestTraffic.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


@pytest.fixture
def link() -> Link:
    return Link()


def test_a_run_of_one_client_is_one_entry(link: Link) -> None:
    one, other = Client(link), Client(link)
    first = link.matcher.expect(one, 2)
    assert link.matcher.expect(one, 3) is first
    assert (first.count, link.matcher.due) == (5, 5)
    first.follow(b"+a\r\n")
    first.follow(b"+b\r\n")
    second = link.matcher.expect(one, 1)
    assert second is not first
    assert first.after == b"+a\r\n+b\r\n"
    third = link.matcher.expect(other, 1)
    fourth = link.matcher.expect(one, 1)
    assert len({id(entry) for entry in (first, second, third, fourth)}) == 4
    assert link.matcher.due == 8


@pytest.mark.parametrize("bad", [b"?", b"\r\n", b"$x\r\n", b"+OK\n", b"*1\r\n>0\r\n"])
def test_a_malformed_reply(link: Link, bad: bytes) -> None:
    first, second = Client(link), Client(link)
    first.send([b"+1\r\n", bad])
    second.send([b"+2\r\n"])
    link.feed(4)
    with pytest.raises(ProtocolError):
        link.feed(1 << 30)
    assert first.output == b"+1\r\n"
    link.matcher.fail("malformed")
    assert link.lost == [(first, "malformed", False), (second, "malformed", False)]


@pytest.mark.parametrize("fed", range(4, 12))
def test_inside_is_only_the_one_whose_reply_was_cut(link: Link, fed: int) -> None:
    first, second = Client(link), Client(link)
    first.send([b"+1\r\n", b"$2\r\nab\r\n"])
    second.send([b"+2\r\n"])
    link.feed(fed)
    link.matcher.fail("gone")
    assert link.lost == [(first, "gone", fed > 4), (second, "gone", False)]


@pytest.mark.parametrize("fed", range(1, 8))
def test_a_cut_push_is_inside_of_nobody(link: Link, fed: int) -> None:
    link.append(None, b">1\r\n+p\r\n")
    client = Client(link)
    client.send([b"+1\r\n"])
    link.feed(fed)
    link.matcher.fail("gone")
    assert link.lost == [(client, "gone", False)]
    assert client.output == b""


class Nobody:
    """A sink that does nothing."""

    def replies(self, *_: object) -> None:
        pass

    def link_lost(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_an_entry_that_is_over_keeps_nothing_alive(fails: bool) -> None:
    # Clients hold on to the entry of their last reply, for as long as they like.
    matcher = Matcher()
    held = [matcher.expect(Nobody(), 1)]
    later = Nobody()
    gone = weakref.ref(later)
    held.append(matcher.expect(later, 1))
    matcher.expect(Nobody(), 1)
    del later, held[1]
    if fails:
        matcher.fail("reason")
    else:
        matcher.feed(b"+OK\r\n" * 3, 15)
    gc.collect()
    assert held[0].count == int(fails)
    assert gone() is None
