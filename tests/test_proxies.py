"""Which proxy a URL uses."""

import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround.common.wire import RendezVous
from fedround.errors import ConfigurationError, NotConnected
from fedround.http import transport
from fedround.http.client import CoordinatorClient
from fedround.http.peer import AsyncPeer
from fedround.http.proxies import Proxy, proxy_for
from support.certificates import Authority
from support.exchanges import ID, download, rendez_vous
from support.peer import Peer, answer

ALL = {"HTTP_PROXY": "http://plain:3128", "HTTPS_PROXY": "http://secure:3128"}


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, "http://fl", None),
        (ALL, "http://fl:8081", Proxy("HTTP_PROXY", "http://plain:3128")),
        (ALL, "https://fl", Proxy("HTTPS_PROXY", "http://secure:3128")),
        ({"HTTPS_PROXY": "p"}, "http://fl", None),
        ({"ALL_PROXY": "socks5://p"}, "http://fl", Proxy("ALL_PROXY", "socks5://p")),
        ({"ALL_PROXY": "p", "HTTP_PROXY": "q"}, "http://fl", Proxy("HTTP_PROXY", "http://q")),
        ({"http_proxy": "p", "HTTP_PROXY": "q"}, "http://fl", Proxy("http_proxy", "http://p")),
        ({"http_proxy": "", "HTTP_PROXY": "q"}, "http://fl", Proxy("HTTP_PROXY", "http://q")),
        ({"HTTP_PROXY": " "}, "http://fl", None),
        ({"HTTP_PROXY": "q", "REQUEST_METHOD": "GET"}, "http://fl", None),
        ({"http_proxy": "q", "REQUEST_METHOD": "GET"}, "http://fl", Proxy("http_proxy", "http://q")),
        ({"HTTP_PROXY": "u:p@q:1"}, "http://fl", Proxy("HTTP_PROXY", "http://u:p@q:1")),
    ],
)
def test_the_variables_that_name_a_proxy(environ: dict[str, str], url: str, proxy: Proxy | None) -> None:
    assert proxy_for(url, environ) == proxy


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.8.9.1", "[::1]"])
def test_this_machine_needs_no_proxy(host: str) -> None:
    assert proxy_for(f"http://{host}:8081", ALL | {"ALL_PROXY": "p"}) is None


@pytest.mark.parametrize(
    ("no_proxy", "without", "through"),
    [
        ("*", ["fl", "10.0.0.1", "[fd00::1]"], []),
        ("fl", ["fl", "FL", "fl.", "fl:8081", "a.fl"], ["xfl", "fl.example", "10.0.0.1"]),
        ("example.org", ["example.org", "fl.example.org", "a.b.example.org"], ["badexample.org", "example.org.evil", "org"]),
        (".example.org", ["example.org", "fl.example.org"], ["badexample.org"]),
        ("*.example.org", ["example.org", "fl.example.org"], ["badexample.org"]),
        ("Example.ORG.", ["fl.example.org"], ["example.com"]),
        ("fl.example.org:8081", ["fl.example.org:8081"], ["fl.example.org", "fl.example.org:8082"]),
        ("fl:80", ["fl"], ["fl:8081"]),
        ("https://fl.example.org/", ["fl.example.org"], ["example.org"]),
        ("10.0.0.7", ["10.0.0.7", "10.0.0.7:8081"], ["10.0.0.8", "10.0.0.70", "fl"]),
        ("10.0.0.7:8081", ["10.0.0.7:8081"], ["10.0.0.7"]),
        ("10.0.0.0/8", ["10.1.2.3"], ["11.0.0.1", "fl", "[fd00::1]"]),
        ("10.1.2.3/8", ["10.9.9.9"], ["11.0.0.1"]),
        ("192.168.*", ["192.168.3.4"], ["192.169.1.1"]),
        ("fd00:1::/64", ["[fd00:1::5]"], ["[fd00:2::5]", "10.0.0.1", "fl"]),
        ("[fd00:1::]/64", ["[fd00:1::5]"], ["[fd00:2::5]"]),
        ("fd00::1", ["[fd00::1]", "[fd00:0::1]:8081"], ["[fd00::2]"]),
        ("[fd00::1]", ["[fd00::1]"], ["[fd00::2]"]),
        ("[fd00::1]:8081", ["[fd00::1]:8081"], ["[fd00::1]"]),
        ("a, b ,,c d\t", ["a", "b", "c", "d"], ["e"]),
        ("localhost,fd00:1::/64,[::1],10.0.0.0/8,.svc,.cluster.local", ["fl.ns.svc", "fl.ns.svc.cluster.local"], ["fl"]),
        ("fl-*.example.org", ["fl-1.example.org"], ["fl.example.org"]),
        ("://, /, [, ], :8, 10.0.0.0/99, [:, .", [], ["fl", "10.0.0.1", "[fd00::1]"]),
    ],
)
def test_no_proxy_excepts_hosts(no_proxy: str, without: list[str], through: list[str]) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert [host for host in without if proxy_for(f"http://{host}", ALL | {name: no_proxy})] == []
        assert [host for host in through if not proxy_for(f"http://{host}", ALL | {name: no_proxy})] == []


@pytest.mark.parametrize(
    ("url", "valid"),
    [
        ("http://p", True),
        ("https://u:p%40@p.example:3128/", True),
        ("socks5h://[fd00::1]:1080", True),
        ("HTTP://p", True),
        ("http://", False),
        ("http://[", False),
        ("http://[::1", False),
        ("http://p:port", False),
        ("http://p/path", False),
        ("socks4://p", False),
        ("gopher://p", False),
    ],
)
def test_the_url_of_a_proxy_is_normalised(url: str, valid: bool) -> None:
    assert Proxy("HTTP_PROXY", url).is_valid is valid


@given(st.text(), st.sampled_from(["fl", "10.0.0.1", "[fd00::1]:8081"]))
def test_any_value_of_no_proxy_is_accepted(no_proxy: str, host: str) -> None:
    proxy_for(f"http://{host}", ALL | {"NO_PROXY": no_proxy})


def test_a_peer_that_the_proxy_does_not_reach_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    with Peer(answer("502 Bad Gateway")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(NotConnected, match="502"):
            rendez_vous("https://nowhere.invalid")


def test_loopback_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with Peer(answer("200 OK", RendezVous(ID).encode())) as peer:
        assert rendez_vous(peer) == RendezVous(ID)


@pytest.mark.parametrize("proxy", ["gopher://ada:geheim@proxy", "http://[::1"])
def test_an_unusable_proxy_is_a_configuration_error(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        CoordinatorClient("http://coordinator")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("no_proxy", ["localhost,fd00:1::/64", "[::1]", "127.0.0.0/8", "[", "://"])
def test_unusable_proxy_variables_for_other_urls_are_ignored(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://nowhere.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "gopher://[")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    with Peer(answer("200 OK", RendezVous(ID).encode()), answer("200 OK", b"model")) as peer:
        assert rendez_vous(peer) == RendezVous(ID)
        assert download(peer).body == b"model"


def test_hosts_in_no_proxy_are_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    host = socket.gethostname()
    monkeypatch.setattr(socket, "getaddrinfo", partial(_here, socket.getaddrinfo, host))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Peer(*[answer("200 OK", RendezVous(ID).encode())] * 2) as peer:
        url = peer.url.replace("127.0.0.1", host)
        with pytest.raises(NotConnected):
            rendez_vous(url)
        monkeypatch.setenv("NO_PROXY", f"example.org, {host}:{peer.server_address[1]}")
        assert rendez_vous(url) == RendezVous(ID)


def _here(resolve: Any, name: str, host: Any, *others: Any, **options: Any) -> Any:
    return resolve("127.0.0.1" if host in (name, name.encode()) else host, *others, **options)


def test_a_socks_proxy_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "find_spec", lambda _name: None)
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy")
    with pytest.raises(ConfigurationError, match=r"^ALL_PROXY: .*pip install 'httpx\[socks\]'$"):
        CoordinatorClient("http://coordinator")
    with pytest.raises(ConfigurationError, match="ALL_PROXY"):
        download("http://aggregator")
    with pytest.raises(ConfigurationError, match="ALL_PROXY"):
        AsyncPeer("http://aggregator:7082")


@pytest.mark.parametrize(
    ("variable", "value"), [("SSL_CERT_FILE", "/nope"), ("SSL_CERT_FILE", "/dev/null"), ("SSLKEYLOGFILE", "/no/pe")]
)
@pytest.mark.parametrize("own", [False, True])
def test_an_unusable_file_of_openssl_is_a_configuration_error_for_https_only(
    variable: str, value: str, own: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a CA file of our own settings, too."""
    transport._default_tls.cache_clear()
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(variable, value)
    CoordinatorClient("http://coordinator").close()
    with pytest.raises(ConfigurationError, match=rf"^{variable}: {value}: .*(No such file|no certificate)"):
        CoordinatorClient("https://coordinator", tls=transport.tls(Path(authority.file), None, None) if own else None)
