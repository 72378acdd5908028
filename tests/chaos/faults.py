"""The faults. Each is a context manager, and lasts as long as its block."""

import math
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from chaos.federation import SIZE, Federation, Member
from hostile.attackers import Attack, Dripper, Ghosts, IdleCrowd, Liar, NeverDeliverer, Pipeliner, scaled
from support.processes import children

LIES = (1e200, math.nan, -math.inf, 1e289)
"""Values that a liar sends as every weight."""
Fault = Callable[[Federation, random.Random], AbstractContextManager[None]]


@contextmanager
def killed(member: Member) -> Iterator[None]:
    member.process.kill()
    yield
    member.start()


@contextmanager
def stopped(member: Member) -> Iterator[None]:
    code = member.process.end()
    if code != 0:
        raise AssertionError(f"{member.name} was asked to stop, and ended with exit code {code}")
    yield
    member.start()


@contextmanager
def worker_killed(member: Member) -> Iterator[None]:
    """Kill the training process, within a round or between two. The participant starts another one."""
    for worker in children(member.process.pid):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    yield


@contextmanager
def paused(member: Member) -> Iterator[None]:
    member.process.send(signal.SIGSTOP)
    yield
    member.process.send(signal.SIGCONT)


@contextmanager
def renewed(f: Federation, random: random.Random) -> Iterator[None]:
    """Start a participant with a new name, then end an old one, by `kill -9` or SIGTERM."""
    old = f.renew(random.choice(f.participants))
    try:
        yield
        if random.random() < 0.5 and (code := old.end()) != 0:
            raise AssertionError(f"an old participant was asked to stop, and ended with exit code {code}")
    finally:
        old.kill()


def _service(fault: Callable[[Member], AbstractContextManager[None]]) -> Fault:
    return lambda f, random: fault(random.choice(f.services))


def _participant(fault: Callable[[Member], AbstractContextManager[None]]) -> Fault:
    return lambda f, random: fault(random.choice(f.participants))


def _weather(weather: str) -> Fault:
    @contextmanager
    def fault(f: Federation, random: random.Random) -> Iterator[None]:
        link = random.choice(list(f.links.values()))
        link.change(weather)
        yield
        link.change("fine")

    return fault


@contextmanager
def cut(f: Federation, random: random.Random) -> Iterator[None]:
    """Cut all connections of a link. New ones work."""
    random.choice(list(f.links.values())).cut()
    yield


@contextmanager
def disk_full(f: Federation, random: random.Random) -> Iterator[None]:
    """Limit the size of all files that the aggregator's process writes."""
    pid = f.aggregator.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (random.choice([0, 100, 100_000]), resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _attack(make: Callable[[Federation, random.Random], Attack]) -> Fault:
    @contextmanager
    def fault(f: Federation, random: random.Random) -> Iterator[None]:
        with make(f, random):
            yield

    return fault


def _any_port(f: Federation, random: random.Random) -> int:
    """Return a random port for participants or operators."""
    return random.choice([port for name, port in sorted(f.ports.items()) if name != "AGGREGATOR_INTERNAL_PORT"])


def _insider(f: Federation) -> tuple[int, int]:
    return f.ports["COORDINATOR_PORT"], f.ports["AGGREGATOR_PORT"]


FAULTS: Sequence[Mapping[str, Fault]] = (
    {
        "service killed": _service(killed),
        "service restarted": _service(stopped),
        "service paused": _service(paused),
        "disk full": disk_full,
    },
    {
        "participant killed": _participant(killed),
        "participant restarted": _participant(stopped),
        "participant paused": _participant(paused),
        "worker killed": _participant(worker_killed),
        "participant replaced": renewed,
    },
    {
        "connections cut": cut,
        "link down": _weather("cut"),
        "link breaks transfers": _weather("torn"),
        "link slow": _weather("slow"),
        "link drops packets": _weather("fog"),
    },
    # Each of them comes as one participant more than there are: the known answer knows nothing of its updates.
    {
        "pipelined requests": _attack(lambda f, random: Pipeliner(_any_port(f, random))),
        "idle connections": _attack(lambda f, random: IdleCrowd(_any_port(f, random))),
        "false update": _attack(lambda f, random: Liar(*_insider(f), scaled(random.choice(LIES)), names=["mallory"])),
        "slow upload": _attack(
            lambda f, random: Dripper(*_insider(f), random.choice([1 << 30, 132 + 8 * SIZE]), names=["mallory"])
        ),
        "missing update": _attack(lambda f, _: NeverDeliverer(*_insider(f), names=["mallory"])),
        "registrations without heartbeats": _attack(lambda f, _: Ghosts(f.ports["COORDINATOR_PORT"])),
    },
)
"""The faults by name. Two simultaneous faults are from different groups, because a killed process cannot be paused."""
