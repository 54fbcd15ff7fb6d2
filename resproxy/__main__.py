"""Owns `python -m resproxy`, which is the command `resproxy`."""

import sys

from resproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
