"""Owns the knowledge of which modules are compiled, and whether they are in this installation.

This module imports nothing of the package: setup.py loads it by its path to learn what to compile.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def hot_sources(package: Path) -> list[Path]:
    """The modules below `package` to be compiled: those with a line `import cython`."""
    return sorted(
        source
        for source in package.rglob("*.py")
        if "import cython" in source.read_text(encoding="utf-8").splitlines()
    )


def module_name(source: Path, package: Path) -> str:
    """The dotted name of the module that lies at `source`."""
    return ".".join(source.relative_to(package.parent).with_suffix("").parts)


#: Dotted names of the modules that are meant to be compiled.
HOT_MODULES: tuple[str, ...] = tuple(
    module_name(source, Path(__file__).parent) for source in hot_sources(Path(__file__).parent)
)


def compiled_modules() -> tuple[str, ...]:
    """Those of HOT_MODULES that an import finds as an extension module."""
    return tuple(name for name in HOT_MODULES if _is_extension(name))


def is_compiled() -> bool:
    """Whether every hot module is compiled."""
    return compiled_modules() == HOT_MODULES


def _is_extension(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
