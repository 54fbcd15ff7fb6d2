"""The configuration: what is read, from where, and what is said about what cannot be used."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import msgspec
import pytest

from resproxy.config import Address, Config, ConfigError, Upstream, default_text, load, options

SECRET = "s3cret"


def from_environment(**variables: str) -> Config:
    return load(None, {f"RESPROXY_{name.upper()}": value for name, value in variables.items()})


def toml(directory: Path, text: str) -> str:
    path = directory / "resproxy.toml"
    path.write_text(text)
    return str(path)


def error_of(**variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_environment(**variables)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://example.org", Upstream(host="example.org")),
        ("redis://127.0.0.1:7000/3", Upstream(port=7000, db=3)),
        ("redis://127.0.0.1:7000/", Upstream(port=7000)),
        ("redis://[::1]:7000", Upstream(host="::1", port=7000)),
        ("redis://:p@h", Upstream(host="h", password="p")),
        ("redis://u:@h", Upstream(host="h", username="u", password="")),
        ("redis://u%40x:a%3Ab%2F%C3%A9@h:1/2", Upstream("h", 1, None, 2, "u@x", "a:b/é")),
        ("unix:///run/redis.sock", Upstream(path="/run/redis.sock")),
        ("unix:///run/a%20b?db=2", Upstream(path="/run/a b", db=2)),
        ("unix://u:p@/run/r", Upstream(path="/run/r", username="u", password="p")),
    ],
)
def test_upstream(url: str, expected: Upstream) -> None:
    assert from_environment(upstream=url).upstream == expected


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("localhost:6379", "must begin with redis://"),
        ("http://localhost", "must begin with redis://"),
        ("redis:/localhost", "must begin with redis://"),
        ("rediss://localhost", "later version"),
        ("redis://", "must name a host"),
        ("redis://:6379", "must name a host"),
        ("redis://h:0", "port from 1 to 65535"),
        ("redis://h:70000", "is no URL"),
        ("redis://h/x", "number from 0"),
        ("redis://h/-1", "number from 0"),
        ("redis://h?db=1", "as a path"),
        ("redis://h/#1", "%23"),
        ("redis://h h", "without spaces"),
        ("redis://user@h", "user without a password"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix:///r?db=1&x=2", "only ?db=N"),
        ("unix:///" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_bad_upstream(url: str, hint: str) -> None:
    text = error_of(upstream=url)
    assert text.startswith("RESPROXY_UPSTREAM: ")
    assert hint in text


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@h:99999",
        f"redis://user:{SECRET}/x@h",
        f"redis://user:{SECRET}[@h",
        f"redis://user:a@{SECRET}@h:0",
        f"redis://user:%ff{SECRET}@h",
        f"redis://user:a {SECRET}@h",
        f"redis://h?password={SECRET}",
        f"rediss://user:{SECRET}@h",
        f"user:{SECRET}@h",
    ],
)
def test_errors_hold_no_secrets(url: str) -> None:
    assert SECRET not in error_of(upstream=url)


@pytest.mark.parametrize(
    "url", ["redis://u:{}@h:1/2", "unix://u:{}@/r?db=2", "redis://:{}@[::1]:1"]
)
def test_display_holds_no_secrets(url: str) -> None:
    upstream = from_environment(upstream=url.format(SECRET)).upstream
    assert upstream.display == url.format("***")
    assert SECRET not in f"{upstream!r} {upstream} {Config(upstream=upstream)!r}"
    assert upstream.password == SECRET


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:6380", Address("127.0.0.1", 6380)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:6380", Address("::1", 6380)),
        ("unix:/run/r.sock", Address(path="/run/r.sock")),
    ],
)
def test_address(text: str, expected: Address) -> None:
    (address,) = from_environment(listen=text).listen
    assert address == expected
    assert address.display == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("6380", "host:port"),
        (":6380", "host:port"),
        ("::1:6380", "[ipv6]:port"),
        ("h:65536", "host:port"),
        ("h:-1", "host:port"),
        ("h:6380,", "host:port"),
        ("unix:r.sock", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:/", "absolute path"),
        ("unix:/" + "é" * 54, "at most 107 bytes"),
        ("tls://h:6380", "later version"),
        ("h:1,h:1", "twice"),
    ],
)
def test_bad_address(text: str, hint: str) -> None:
    assert hint in error_of(listen=text)


def test_several_addresses(tmp_path: Path) -> None:
    expected = (Address("h", 1), Address(path="/r"))
    assert load(Namespace(listen=["h:1", "unix:/r"]), {}).listen == expected
    assert from_environment(listen="h:1, unix:/r").listen == expected
    assert load(None, {}, toml(tmp_path, 'listen = ["h:1", "unix:/r"]')).listen == expected
    assert load(None, {}, toml(tmp_path, 'listen = "h:1"')).listen == expected[:1]
    with pytest.raises(ConfigError, match="one or more"):
        load(None, {}, toml(tmp_path, "listen = []"))
    with pytest.raises(ConfigError, match="must be text"):
        load(None, {}, toml(tmp_path, "listen = [1]"))


def test_defaults() -> None:
    config = load(None, {})
    assert config == Config()
    assert config.upstream.display == "redis://127.0.0.1:6379"
    assert [address.display for address in config.listen] == ["127.0.0.1:6380"]


@pytest.mark.parametrize("name", [name for name in options() if name not in ("admin", "embedded")])
def test_default_can_be_written(name: str) -> None:
    assert from_environment(**{name: default_text(name)}) == Config()


def test_precedence(tmp_path: Path) -> None:
    file = toml(tmp_path, "connections = 1\nmax_clients = 1\nmax_pinned = 1")
    environ = {"RESPROXY_CONNECTIONS": "2", "RESPROXY_MAX_CLIENTS": "2"}
    config = load(Namespace(connections="3", listen=None, config="x"), environ, file)
    assert (config.connections, config.max_clients, config.max_pinned) == (3, 2, 1)
    assert load(None, {"RESPROXY_CONFIG": file}).max_pinned == 1


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().connections = 5  # type: ignore[misc]
    assert msgspec.structs.replace(Config(), connections=5).connections == 5


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("connections", "1024", 1024),
        ("spare_links", "0", 0),
        ("drain_timeout", "0.5", 0.5),
        ("output_pause", "2000", 2000),
        ("output_pause", "64mb", 64 << 20),
        ("output_pause", "64MB", 64 << 20),
        ("output_pause", "2k", 2000),
        ("output_pause", "2kb", 2048),
        ("output_pause", "1 gb", 1 << 30),
        ("embedded", "yes", True),
        ("embedded", "FALSE", False),
        ("log_level", "DEBUG", "debug"),
        ("log_format", "json", "json"),
        ("workers", "1", 1),
        ("connections", "", 4),
    ],
)
def test_value(name: str, value: str, expected: object) -> None:
    assert getattr(from_environment(**{name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("connections", "0", "from 1 to 1024"),
        ("connections", "1025", "from 1 to 1024"),
        ("connections", "four", "from 1 to 1024"),
        ("connections", "٤", "from 1 to 1024"),
        ("connections", "-1", "from 1 to 1024"),
        ("max_clients", "0", "whole number"),
        ("upstream_wait", "0", "greater than 0"),
        ("upstream_wait", "-1", "greater than 0"),
        ("upstream_wait", "nan", "greater than 0"),
        ("upstream_wait", "inf", "greater than 0"),
        ("upstream_wait", "2s", "greater than 0"),
        ("output_limit", "64 bananas", "16kb"),
        ("output_limit", "1023", "at least 1kb"),
        ("output_limit", "-1", "at least 1kb"),
        ("embedded", "maybe", "true or false"),
        ("log_level", "loud", "debug, info, warning, error"),
        ("log_format", "xml", "text, json"),
        ("workers", "2", "later version"),
        ("admin", "127.0.0.1:9000", "later version"),
    ],
)
def test_bad_value(name: str, value: str, hint: str) -> None:
    text = error_of(**{name: value})
    assert text.startswith(f"RESPROXY_{name.upper()}: {value!r}: ")
    assert hint in text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("connections = true", "connections: True: must be a whole number"),
        ("connections = 1.5", "connections: 1.5: must be a whole number"),
        ("drain_timeout = true", "greater than 0"),
        ("drain_timeout = [1]", "greater than 0"),
        ("embedded = 1", "true or false"),
        ("upstream = 6379", "upstream: 'int': must be a URL"),
        ("conections = 1", "did you mean connections?"),
        ("max-clients = 1", "did you mean max_clients?"),
        ("[zzz]", "known are upstream, listen"),
        ("connections =", "is not valid TOML"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, hint: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(None, {}, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert hint in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(None, {}, str(tmp_path / "none.toml"))
    (tmp_path / "latin1.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(None, {}, str(tmp_path / "latin1.toml"))


def test_flag_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--log-level: 'x': must be one of"):
        load(Namespace(log_level="x"), {})


def test_unknown_variable() -> None:
    assert error_of(upstraem="x").endswith("did you mean RESPROXY_UPSTREAM?")


def test_variables_of_others_are_left_alone() -> None:
    others = {
        "PATH": "/bin",
        "RESPROXY_REQUIRE_COMPILED": "1",
        "RESPROXY_DISABLE_COMPILED": "1",
        # What Kubernetes sets near a Service that is called resproxy:
        "RESPROXY_PORT": "tcp://10.0.0.1:6380",
        "RESPROXY_PORT_6380_TCP": "tcp://10.0.0.1:6380",
        "RESPROXY_PORT_6380_TCP_ADDR": "10.0.0.1",
        "RESPROXY_SERVICE_HOST": "10.0.0.1",
        "RESPROXY_SERVICE_PORT": "6380",
        "RESPROXY_SERVICE_PORT_REDIS": "6380",
    }
    assert load(None, others) == Config()


def test_embedded_excludes_upstream() -> None:
    with pytest.raises(ConfigError, match="--embedded and RESPROXY_UPSTREAM exclude each other"):
        load(Namespace(embedded=True), {"RESPROXY_UPSTREAM": "redis://h"})
    assert (
        load(None, {"RESPROXY_EMBEDDED": "no", "RESPROXY_UPSTREAM": "redis://h"}).embedded is False
    )


def test_bounds_in_order() -> None:
    assert "must not be greater than the default of output_limit" in error_of(output_pause="2gb")
    text = error_of(backoff_min="3", backoff_max="1")
    assert text == "RESPROXY_BACKOFF_MIN must not be greater than RESPROXY_BACKOFF_MAX: 3.0 > 1.0"
