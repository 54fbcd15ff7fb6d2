"""What is built and shipped: the package, the container image, the Compose file, the README."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from resproxy import __version__, cli
from resproxy.compiled import is_compiled
from resproxy.config import (
    BUILD_VARIABLES,
    ENVIRONMENT_PREFIX,
    FILE_VARIABLE,
    default_text,
    load,
    options,
)

ROOT = Path(__file__).parent.parent
VARIABLES = {ENVIRONMENT_PREFIX + name.upper() for name in options()}
VARIABLES |= {FILE_VARIABLE, *BUILD_VARIABLES}


@pytest.mark.skipif("EXPECT_COMPILED" not in os.environ, reason="set by make")
def test_the_build_that_was_asked_for_is_tested() -> None:
    assert is_compiled() == (os.environ["EXPECT_COMPILED"] == "1")


# The Dockerfile


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and its argument, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines()]
    return [(name, argument) for name, _, argument in found]


def final_stage() -> dict[str, str]:
    found = instructions()
    last = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return dict(found[last:])


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(RESPROXY_\w+)=(\S+)", final_stage()["ENV"]))


def test_image_has_two_stages_of_one_python() -> None:
    stages = [argument.split() for name, argument in instructions() if name == "FROM"]
    assert len(stages) == 2
    assert stages[0][1:] == ["AS", "builder"]
    assert stages[0][0] == stages[1][0]  # the environment that is copied belongs to it
    assert re.fullmatch(r"python:3\.\d+-slim-bookworm", stages[1][0])


def test_image_is_compiled() -> None:
    (build,) = [argument for _, argument in instructions() if "pip wheel" in argument]
    assert "RESPROXY_REQUIRE_COMPILED=1" in build
    assert "--version | grep -q '(compiled)'" in build


def test_image_installs_what_is_locked() -> None:
    for _, argument in instructions():
        for install in re.findall(r"pip[^&]* install [^&]*", argument):
            assert "--no-cache-dir" in install
            assert "--require-hashes" in install or "--no-deps" in install


def test_image_does_not_run_as_root() -> None:
    user = final_stage()["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    for number in user.split(":"):
        assert f"id {number} " in final_stage()["RUN"]


def test_image_copies_what_exists_and_is_not_ignored() -> None:
    sources = [
        source
        for name, argument in instructions()
        if name == "COPY" and "--from" not in argument
        for source in argument.split()[:-1]
    ]
    assert "resproxy/" in sources
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}{'/' if '/' in source else ''}" in kept


def test_image_serves_by_default() -> None:
    stage = final_stage()
    command = json.loads(stage["ENTRYPOINT"]) + json.loads(stage["CMD"])
    arguments = cli.build_parser().parse_args(command[1:])
    assert command[0] == "resproxy"
    assert arguments.function is cli.run
    (address,) = load(arguments, image_environment()).listen
    assert address.port == int(stage["EXPOSE"])
    health = json.loads(stage["HEALTHCHECK"].partition("CMD ")[2])
    assert cli.build_parser().parse_args(health[1:]).function is cli.ping


# The Compose file


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def test_compose_starts_the_proxy(services: dict[str, Any]) -> None:
    service = services["resproxy"]
    arguments = cli.build_parser().parse_args(service["command"])
    config = load(arguments, image_environment() | service["environment"])
    assert arguments.function is cli.run
    assert config.upstream.host in services
    unix, tcp = config.listen
    assert service["ports"] == [f"127.0.0.1:{tcp.port}:{tcp.port}"]
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > config.drain_timeout
    assert unix.path is not None
    assert unix.path in services["app"]["command"]
    mounts = {mount.split(":")[1] for mount in service["volumes"]}
    assert str(Path(unix.path).parent) in mounts
    assert services["app"]["volumes"] == service["volumes"]
    assert services["app"]["user"] == final_stage()["USER"]


def test_compose_gives_no_more_than_is_needed(services: dict[str, Any]) -> None:
    assert "ports" not in services["redis"]
    for name in ("resproxy", "app"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_compose_waits_for_health(services: dict[str, Any]) -> None:
    assert "healthcheck" in services["redis"]
    assert services["resproxy"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["app"]["depends_on"] == {"resproxy": {"condition": "service_healthy"}}


# What is written about options


@pytest.mark.parametrize(
    "name", ["README.md", "Dockerfile", "docker-compose.yml", "Makefile", ".ci/run", "setup.py"]
)
def test_variables_exist(name: str) -> None:
    used = set(re.findall(r"RESPROXY_[A-Z_]*[A-Z]", (ROOT / name).read_text()))
    assert used <= VARIABLES


def test_readme_lists_every_option() -> None:
    rows = re.findall(r"^\| `.*", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [
        f"| `{name}`{' *' if option.flag else ''} | `{default_text(name)}` | {option.help} |"
        for name, option in options().items()
    ]


def test_readme_commands_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(
        re.findall(r"^make (\w+)|`make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    assert {"run", "test"} <= {a or b for a, b in used} <= targets


def test_readme_file_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "resproxy.toml").write_text(example)
    assert load(None, {}, str(tmp_path / "resproxy.toml")).output_limit == 2 << 30


def test_locks_name_no_index() -> None:
    locks = sorted((ROOT / "requirements").glob("*.txt"))
    assert [lock.stem for lock in locks] == ["bench", "build", "lint", "runtime", "test"]
    for lock in locks:
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert re.findall(r"://|^--|file:", text, re.MULTILINE) == []


# The build, of a copy of the tree with one hot module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = ("__init__.py", "compiled.py", "wire/__init__.py", "wire/replies.py")
    for name in (*(f"resproxy/{name}" for name in names), "setup.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build(tree: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RESPROXY_")}
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", command],
        cwd=tree,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def wheel_names(tree: Path) -> list[str]:
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name.startswith(f"resproxy-{__version__}-")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_is_compiled_and_has_no_c_files(tree: Path) -> None:
    done = build(tree, "bdist_wheel", RESPROXY_REQUIRE_COMPILED="1")
    assert done.returncode == 0, done.stderr
    names = wheel_names(tree)
    assert "resproxy/wire/replies.py" in names
    assert [name for name in names if name.endswith(".so")] != []
    assert [name for name in names if name.endswith((".c", ".html"))] == []
    assert [*tree.glob("resproxy/**/*.c"), *tree.glob("resproxy/**/*.so")] == []
    assert "INTERPRETED" not in done.stderr


def test_no_compiler(tree: Path) -> None:
    done = build(tree, "bdist_wheel", CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr
    assert "WILL RUN INTERPRETED" in done.stderr
    assert [name for name in wheel_names(tree) if name.endswith(".so")] == []


def test_no_compiler_where_it_is_required(tree: Path) -> None:
    done = build(tree, "bdist_wheel", CC="/nonexistent/cc", RESPROXY_REQUIRE_COMPILED="1")
    assert done.returncode != 0


def test_compilation_switched_off(tree: Path) -> None:
    done = build(tree, "bdist_wheel", RESPROXY_DISABLE_COMPILED="1", CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr
    assert "WILL RUN INTERPRETED" in done.stderr
    assert "resproxy/wire/replies.py" in wheel_names(tree)


def test_required_and_switched_off(tree: Path) -> None:
    both = {"RESPROXY_DISABLE_COMPILED": "1", "RESPROXY_REQUIRE_COMPILED": "1"}
    done = build(tree, "bdist_wheel", **both)
    assert done.returncode != 0
    assert "exclude each other" in done.stderr


def test_sdist_has_sources_only(tree: Path) -> None:
    done = build(tree, "sdist")
    assert done.returncode == 0, done.stderr
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert f"resproxy-{__version__}/resproxy/wire/replies.py" in names
    assert [name for name in names if name.endswith((".c", ".so"))] == []
