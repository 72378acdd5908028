"""What goes wrong: each fault is a block, in which it lasts."""

import random
import resource
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from chaos.federation import Federation, Member

Fault = Callable[[Federation, random.Random], AbstractContextManager[None]]


@contextmanager
def _killed(member: Member) -> Iterator[None]:
    member.process.kill()
    yield
    member.start()


@contextmanager
def _stopped(member: Member) -> Iterator[None]:
    code = member.process.end()
    if code != 0:
        raise AssertionError(f"{member.name} was asked to stop, and ended with exit code {code}")
    yield
    member.start()


@contextmanager
def _paused(member: Member) -> Iterator[None]:
    member.process.send(signal.SIGSTOP)
    yield
    member.process.send(signal.SIGCONT)


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
    """All connections of a link at once; new ones are fine."""
    random.choice(list(f.links.values())).cut()
    yield


@contextmanager
def disk_full(f: Federation, random: random.Random) -> Iterator[None]:
    """No file of the aggregator's process can become larger than so many bytes."""
    pid = f.aggregator.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (random.choice([0, 100, 100_000]), resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


FAULTS: Sequence[Mapping[str, Fault]] = (
    {
        "service killed": _service(_killed),
        "service restarted": _service(_stopped),
        "service paused": _service(_paused),
        "disk full": disk_full,
    },
    {
        "participant killed": _participant(_killed),
        "participant restarted": _participant(_stopped),
        "participant paused": _participant(_paused),
    },
    {
        "connections cut": cut,
        "link down": _weather("cut"),
        "link torn": _weather("torn"),
        "link slow": _weather("slow"),
        "link in fog": _weather("fog"),
    },
)
"""By their names. Two at once are of different groups: nobody can pause what was killed."""
