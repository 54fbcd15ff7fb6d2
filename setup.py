"""Owns the compilation of the hot modules; all else is in pyproject.toml.

RESPROXY_REQUIRE_COMPILED=1 makes a failed compilation fail the build, RESPROXY_DISABLE_COMPILED=1
skips it. With neither, a build without Cython or without a C compiler still succeeds, and says
that the result runs interpreted.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

REQUIRED = os.environ.get("RESPROXY_REQUIRE_COMPILED") == "1"
DISABLED = os.environ.get("RESPROXY_DISABLE_COMPILED") == "1"


def load_compiled_module() -> ModuleType:
    """Load resproxy/compiled.py by its path: importing the package may need what is not there."""
    spec = importlib.util.spec_from_file_location("compiled", "resproxy/compiled.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def extensions() -> list[Extension]:
    """The hot modules as extensions; none where they cannot or shall not be compiled."""
    if REQUIRED and DISABLED:
        sys.exit("RESPROXY_REQUIRE_COMPILED and RESPROXY_DISABLE_COMPILED exclude each other")
    if DISABLED:
        say_interpreted("switched off by RESPROXY_DISABLE_COMPILED")
        return []
    if not REQUIRED and importlib.util.find_spec("Cython") is None:
        say_interpreted("Cython is not installed")
        return []
    compiled = load_compiled_module()
    package = Path("resproxy")
    return [
        Extension(compiled.module_name(source, package), [str(source)], optional=not REQUIRED)
        for source in compiled.hot_sources(package)
    ]


class BuildExt(build_ext):
    """Translates and compiles; says loudly what could not be, since that is only a warning."""

    def run(self) -> None:
        """Build all extensions, whose sources are Python until here: an sdist has no C files."""
        if self.extensions:
            self._translate()
        super().run()
        missing = [
            extension.name
            for extension in self.extensions
            if not Path(self.get_ext_fullpath(extension.name)).exists()
        ]
        if missing:
            say_interpreted(f"not compiled: {', '.join(missing)}; is a C compiler installed?")

    def _translate(self) -> None:
        from Cython.Build import cythonize  # noqa: PLC0415 - may be missing, see extensions()

        translated = cythonize(
            [Extension(extension.name, extension.sources) for extension in self.extensions],
            build_dir="build/cython",  # in the source tree they would go stale
            compiler_directives={"language_level": 3},
        )
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]


def say_interpreted(reason: str) -> None:
    """Tell whoever looks at the build's output."""
    bar = "*" * 80
    print(f"{bar}\nresproxy WILL RUN INTERPRETED, MUCH SLOWER\n{reason}\n{bar}", file=sys.stderr)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
