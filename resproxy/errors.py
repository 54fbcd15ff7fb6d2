"""Owns the texts that the proxy itself sends to clients as errors, and writes in logs."""

from __future__ import annotations

MAX_CLIENTS = b"-ERR max number of clients reached\r\n"
UNBALANCED = b"Protocol error: unbalanced quotes in request"


def unreachable(upstream: str, reason: str, waited: float) -> str:
    """A command waited for the server in vain."""
    return (
        f"ERR resproxy: no connection to {upstream} within {waited:g} s ({reason}); "
        "the command was not sent"
    )


def too_many_pinned(limit: int) -> str:
    """A command needs a link of its own, and all are out."""
    return (
        f"ERR resproxy: all {limit} pinned links are in use and this command needs one; "
        "raise max_pinned (and the server's maxclients), or close clients that hold one"
    )
