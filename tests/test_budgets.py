from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedround.http.budgets import MAX_CONNECTIONS, MAX_OPS, Buckets, Connections, Limits, PortSettings, network, share_out

PLATFORM = [PortSettings("public"), PortSettings("ops"), PortSettings("public"), PortSettings("ops")]


def test_with_many_descriptors_connections_are_limited_by_memory() -> None:
    assert share_out(1 << 20, PLATFORM) == [(MAX_CONNECTIONS, 3072), (MAX_OPS, 75), (MAX_CONNECTIONS, 3072), (MAX_OPS, 75)]


def test_with_few_descriptors_ports_share_three_quarters_and_operators_have_their_own() -> None:
    assert share_out(1024, PLATFORM) == [(284, 213), (100, 75), (284, 213), (100, 75)]
    assert share_out(1024, [PortSettings("ops")]) == [(100, 75)]
    assert share_out(256, [PortSettings("public"), PortSettings("internal"), PortSettings("ops")]) == [(83, 62), (83, 62), (25, 18)]


def test_a_setting_raises_or_lowers_a_limit_up_to_what_the_descriptors_allow() -> None:
    assert share_out(1 << 20, [PortSettings("public", 50_000, 7)]) == [(50_000, 7)]
    assert share_out(1024, [PortSettings("public", 50_000, 50_000)]) == [(768, 768)]
    assert share_out(1024, [PortSettings("public", 10)]) == [(10, 7)]


@given(st.integers(1, 1 << 20), st.lists(st.sampled_from(["public", "internal", "ops"]), min_size=1, max_size=6))
def test_every_port_keeps_at_least_one_connection(descriptors: int, kinds: list[str]) -> None:
    for port, address in share_out(descriptors, [PortSettings(kind) for kind in kinds]):  # type: ignore[arg-type]  # of those three
        assert 1 <= address <= port


def test_at_the_limit_of_a_port_the_oldest_new_then_the_longest_idle_connection_is_closed() -> None:
    connections = Connections[int](Limits(3, 3))
    for key in (1, 2, 3):
        assert connections.opened(key, "a") is None
    connections.busy(1)
    connections.idle(1)
    assert connections.opened(4, "b") == (2, "port_limit")
    assert connections.opened(5, "b") == (3, "port_limit")
    connections.busy(4)
    connections.busy(5)
    assert connections.opened(6, "c") == (1, "port_limit")
    connections.busy(6)
    assert connections.opened(7, "c") == (7, "port_limit"), "all are busy"
    connections.idle(5)
    connections.idle(4)
    assert connections.opened(8, "c") == (5, "port_limit")


def test_at_the_limit_of_an_address_another_connection_of_it_is_closed() -> None:
    connections = Connections[int](Limits(10, 2))
    for key, address in enumerate(["a", "b", "b", "a"]):
        assert connections.opened(key, address) is None
    assert connections.opened(4, "b") == (1, "address_limit")
    connections.busy(2)
    connections.busy(4)
    assert connections.opened(5, "b") == (5, "address_limit")
    assert connections.opened(6, "c") is None
    assert len(connections) == 5


class Port(RuleBasedStateMachine):
    """At any time limits hold, no busy connection is closed, and closed connections are forgotten."""

    LIMITS = Limits(6, 4)

    def __init__(self) -> None:
        super().__init__()
        self.connections = Connections[int](self.LIMITS)
        self.open: dict[int, str] = {}
        self.busy_ones: set[int] = set()
        self.made = 0

    @rule(address=st.sampled_from("abc"))
    def opened(self, address: str) -> None:
        self.made += 1
        self.open[self.made] = address
        if closed := self.connections.opened(self.made, address):
            assert closed[0] not in self.busy_ones
            if closed[1] == "address_limit":
                assert self.open[closed[0]] == address
            del self.open[closed[0]]

    @rule(index=st.integers(0, 9), what=st.sampled_from(["busy", "idle", "closed"]))
    def moved(self, index: int, what: str) -> None:
        key = self.made - index
        getattr(self.connections, what)(key)
        (self.busy_ones.add if what == "busy" and key in self.open else self.busy_ones.discard)(key)
        if what == "closed":
            self.open.pop(key, None)

    @invariant()
    def bounded(self) -> None:
        assert len(self.connections) == len(self.open) <= self.LIMITS.port
        assert max(Counter(self.open.values()).values(), default=0) <= self.LIMITS.address
        assert self.connections._of.keys() == set(self.open.values())


TestPort = Port.TestCase


def test_a_bucket_allows_a_burst_and_refills() -> None:
    buckets = Buckets[str](rate=2, burst=3, max_keys=10)
    assert [buckets.take("a", 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert buckets.take("b", 100.0)
    assert not buckets.take("a", 100.4)
    assert [buckets.take("a", 100.5) for _ in range(2)] == [True, False]
    assert [buckets.take("a", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_the_least_recently_used_bucket_is_forgotten() -> None:
    buckets = Buckets[int](rate=1, burst=1, max_keys=2)
    assert [buckets.take(key, 0.0) for key in (1, 2, 1, 3)] == [True, True, False, True]
    assert not buckets.take(1, 0.0)
    assert buckets.take(2, 0.0), "it was forgotten"


@pytest.mark.parametrize("what", ["busy", "idle", "closed"])
def test_a_refused_connection_is_not_counted(what: str) -> None:
    connections = Connections[int](Limits(1, 1))
    connections.opened(1, "a")
    connections.busy(1)
    assert connections.opened(2, "b") == (2, "port_limit")
    getattr(connections, what)(2)
    assert len(connections) == 1


@pytest.mark.parametrize(
    ("address", "one"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "20010db800000000"),
        ("2001:db8:0:0:ffff::2%eth0", "20010db800000000"),
        ("2001:db8:0:1::", "20010db800000001"),
        ("", ""),
    ],
)
def test_a_64_bit_network_counts_as_one_address(address: str, one: str) -> None:
    assert network(address) == one
