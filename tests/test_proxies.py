"""Which proxy is asked for which URL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround.http.proxies import Proxy, proxy_for

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
def test_what_no_proxy_excepts(no_proxy: str, without: list[str], through: list[str]) -> None:
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
def test_what_a_proxys_url_is(url: str, valid: bool) -> None:
    assert Proxy("HTTP_PROXY", url).is_valid is valid


@given(st.text(), st.sampled_from(["fl", "10.0.0.1", "[fd00::1]:8081"]))
def test_whatever_no_proxy_says_it_is_read(no_proxy: str, host: str) -> None:
    proxy_for(f"http://{host}", ALL | {"NO_PROXY": no_proxy})
