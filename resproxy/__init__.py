"""A Redis-protocol sidecar proxy: many client connections in, a few shared upstream links out."""

__version__ = "0.1.0"
