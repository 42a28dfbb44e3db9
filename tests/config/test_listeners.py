"""What must hold of listeners and of TLS to replicas before anything is bound."""

import pytest
from certkit import Authority

from router.config import listeners
from router.config.addresses import UnixSocket, unix_path
from router.config.listeners import proxies, unix_mode, upstream_tls
from router.config.settings import Settings
from router.config.static import ConfigError, EndpointEntry, File, build_table
from router.routing.spec import TlsSpec

PAIR = {"tls_cert": ["c"], "tls_key": ["k"]}


def check(**kwargs):
    Settings(**({"replica": ["https://127.0.0.1:1"]} | kwargs)).check()


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"listen_tls": ["0.0.0.0:443"], **PAIR}, "--listen-tls 0.0.0.0:443: an open router"),
        ({"listen_tls": ["x"], **PAIR}, "--listen-tls: 'x' is not HOST:PORT"),
        ({"listen_tls": ["127.0.0.1:1"]}, "--tls-cert: --listen-tls needs"),
        ({"listen_tls": ["127.0.0.1:1"], "tls_cert": ["a", "b"], "tls_key": ["k"]}, "--tls-key: 1 keys for 2"),
        (PAIR, "--tls-cert: is for --listen-tls and --listen-quic"),
        ({"listen_quic": ["0.0.0.0:443"], **PAIR}, "--listen-quic 0.0.0.0:443: an open router"),
        ({"listen_quic": ["unix:/x"], **PAIR}, "--listen-quic: 'unix:/x' is not HOST:PORT"),
        ({"quic_portal": "policy.test"}, "--quic-portal: is for --listen-quic"),
        ({"robot_telemetry": "udp://h:1"}, "--robot-telemetry: is for --listen-quic"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "robot_telemetry": "tcp://h:1"}, "--robot-telemetry: 'tcp://h:1' is neither udp"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "robot_telemetry": "h:1"}, "--robot-telemetry: 'h:1' is neither udp"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "robot_telemetry": "udp://h"}, "--robot-telemetry: 'h' is not HOST:PORT"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "robot_telemetry": "udp://h:0"}, "--robot-telemetry: 'udp://h:0' has port 0"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "robot_telemetry": "unix:"}, "--robot-telemetry: 'unix:' is not unix:PATH"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "robot_telemetry": "unix:" + "x" * 108}, "--robot-telemetry: 'unix:xxx"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "quic_portal": "no host"}, "--quic-portal: 'no host' is no HOST"),
        ({"listen_quic": ["127.0.0.1:1"], **PAIR, "quic_portal": "/only/a/path"}, "--quic-portal: '/only/a/path' is no"),
        ({"listen_quic": ["127.0.0.1:1"]}, "--tls-cert: --listen-quic needs"),
        ({"tls_client_ca": "c"}, "--tls-client-ca: is for --listen-tls"),
        ({"listen": ["unix:"]}, "--listen: 'unix:'"),
        ({"listen": ["unix:/x\0y"]}, "--listen: "),
        ({"unix_mode": "9"}, "--unix-mode: '9'"),
        ({"unix_mode": ""}, "--unix-mode: ''"),
        ({"proxy_protocol_from": ["::1"]}, "--proxy-protocol-from: is for"),
        ({"proxy_protocol": True, "proxy_protocol_from": ["x"]}, "--proxy-protocol-from: 'x'"),
        ({"admin": "unix:"}, "--admin: 'unix:'"),
    ],
)
def test_refused(kwargs, complaint):
    with pytest.raises(ConfigError) as refusal:
        check(**kwargs)
    assert str(refusal.value).startswith(complaint)


def test_without_the_extra_it_says_which(monkeypatch):
    monkeypatch.setattr(listeners, "QUIC_MODULES", ("aioquic", "not_there"))
    with pytest.raises(ConfigError, match=r"--listen-quic: not_there not installed.*replica-router\[quic\]"):
        check(listen_quic=["127.0.0.1:1"], **PAIR)
    check()


@pytest.mark.parametrize("guard", [{"tls_client_ca": "ca"}, {"auth_token": ["t"]}, {"unauthenticated": True}])
def test_beyond_loopback_with_something_that_asks(guard):
    check(listen_tls=["0.0.0.0:443"], **PAIR, **guard)


def test_a_unix_socket_is_as_loopback():
    check(listen=["unix:/run/router"])
    assert unix_path("unix:relative/path", "--listen") == "relative/path"
    assert unix_path("127.0.0.1:1", "--listen") == ""
    assert unix_mode(Settings(unix_mode="0660")) == 0o660


def test_who_may_send_a_proxy_header():
    assert proxies(Settings()) is None
    assert proxies(Settings(proxy_protocol=True)) == ["127.0.0.0/8", "::1/128"]
    assert proxies(Settings(proxy_protocol=True, proxy_protocol_from=["10.0.0.0/8"])) == ["10.0.0.0/8"]


def test_tls_to_replicas_by_flags(tmp_path):
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.cert)
    cert, key = authority.client().write(tmp_path, "client")
    ca = str(tmp_path / "ca.pem")
    settings = Settings(
        replica=["http://a:1", "https://b:2"], upstream_ca=ca, upstream_cert=cert, upstream_key=key,
        upstream_server_name="b.test",
    )  # fmt: skip
    assert settings.table(1).endpoints[0].tls == TlsSpec(ca=ca, cert=cert, key=key, server_name="b.test")
    assert Settings(replica=["https://b:2"], upstream_insecure=True).table(1).endpoints[0].tls.verify is False
    for change, complaint in (
        ({"upstream_ca": ca + "x"}, "--upstream-ca: .*cannot be read"),
        ({"upstream_key": ""}, "--upstream-key: .*holds no key"),
        ({"upstream_cert": ""}, "--upstream-cert: is needed"),
        ({"replica": ["http://a:1"]}, "--upstream-ca: is for https replicas"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            upstream_tls(Settings(**({"replica": ["https://b:2"], "upstream_ca": ca, "upstream_cert": cert,
                                      "upstream_key": key} | change)))  # fmt: skip


def test_tls_to_replicas_by_the_file(tmp_path):
    path = tmp_path / "router.toml"
    text = '[[endpoint]]\nname = "e"\ntls = { ca = "%s" }\n[[endpoint.replica]]\naddress = "https://h:1"\n'
    path.write_text(text % (tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"endpoint\[0\].tls.ca: .*ca.pem: cannot be read"):
        Settings(config=str(path)).table(1)
    (tmp_path / "ca.pem").write_bytes(Authority().cert)
    assert Settings(config=str(path)).table(1).endpoints[0].tls.ca.endswith("ca.pem")
    with pytest.raises(ConfigError, match="--upstream-insecure: .*`tls` of its own"):
        Settings(config=str(path), upstream_insecure=True).table(1)
    assert build_table(File(endpoint=[EndpointEntry("e")]), 1, "x").endpoints[0].tls == TlsSpec()


def test_a_socket_file_that_somebody_replaced_is_not_removed(tmp_path):
    path = tmp_path / "s"
    first = UnixSocket(str(path))
    path.unlink()
    second = UnixSocket(str(path))
    first.remove()
    assert path.exists()
    second.remove()
    second.remove()
    assert not path.exists()
    for made in (first, second):
        made.sock.close()
