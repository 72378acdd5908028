"""What is measured."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bench.harness import MB, Participants, cpu, platform, rss, theirs

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """`variants` are measured in turn; each gives figures, and raises `harness.Failed` where the work was not done."""

    title: str
    note: str
    variants: Mapping[str, Callable[[], Figures]]


def rounds(kind: Participants, many: int) -> Figures:
    """Nothing but the work around a round."""
    count, size, warm = 10, 5, max(many // 10, 2)
    with platform(min_clients=count) as p, kind.at_work(range(count), size, p.url) as participants:

        def used() -> tuple[float, float]:
            return sum(map(cpu, participants)) / count, cpu(p.coordinator.pid)

        began, before = p.completed(*range(warm)), used()
        ended, after = p.completed(*range(warm, warm + many)), used()
        p.check(count, size)
    a_participant, the_platform = (1000 * (b - a) / many for a, b in zip(before, after, strict=True))
    return {
        "rounds/s": many / (ended - began),
        "participant: CPU ms/round": a_participant,
        "platform: CPU ms/round": the_platform,
    }


def model(kind: Participants, count: int, megabytes: int, many: int, *, split: bool) -> Figures:
    """The other participants come when the first and the platform are idle, and with them the first round."""
    size = megabytes * MB // 8
    figures: dict[str, float] = {}
    with platform(min_clients=count, split=split) as p, kind.at_work([0], size, p.url) as (first,):
        p.registered(1)
        settle()
        processes = {"participant": first} | {name: service.pid for name, service in p.services.items()}
        idle = {name: rss(pid) for name, pid in processes.items()}
        with kind.at_work(range(1, count), size, p.url):
            began = p.completed(0)
            figures["s/round"] = (p.completed(*range(1, many + 1)) - began) / many
            for name, pid in processes.items():
                figures[f"{name}: peak MB"] = peak = rss(pid, peak=True)
                figures[f"{name}: models above idle"] = (peak - idle[name]) / megabytes
            p.check(count, size)
    return figures


def idle(kind: Participants, *, split: bool) -> Figures:
    """A participant that waits for a second one."""
    with platform(min_clients=2, split=split) as p:
        began = time.perf_counter()
        with kind.at_work([0], 5, p.url) as (participant,):
            registered = p.registered(1) - began
            settle()
            processes = {"participant": participant} | {name: service.pid for name, service in p.services.items()}
            return {"start to registered, s": registered} | {f"{name}: MB": rss(pid) for name, pid in processes.items()}


def settle() -> None:
    """What is registered still has modules to import, and its first heartbeats to send."""
    time.sleep(2)


def cases(quick: bool, count: int, megabytes: int) -> Mapping[str, Case]:
    """All cases by the names that `--only` knows; `quick` makes them short."""
    ours, slow, fast = Participants(), theirs(1.0), theirs(0.05)
    small = {ours: 20, fast: 10, slow: 1} if quick else {ours: 300, fast: 100, slow: 5}
    large = partial(model, count=count, megabytes=megabytes, many=1 if quick else 5)
    split = f"{ours.name}, coordinator and aggregator apart"
    return {
        "rounds": Case(
            "Rounds: ten participants, five floats",
            "All participants are processes of their own, the platform is `fedround platform`.",
            {kind.name: partial(rounds, kind, many) for kind, many in small.items()},
        ),
        "model": Case(
            f"A large model: {count} participants, {megabytes} MB of float64",
            "Peak RSS, and by how many models that is more than before the first round. The participant is one of them.",
            {
                ours.name: partial(large, ours, split=False),
                fast.name: partial(large, fast, split=False),
                split: partial(large, ours, split=True),
            },
        ),
        "idle": Case(
            "Idle: one participant that waits",
            "From the start of the process until the coordinator shows it, and the RSS two seconds later.",
            {
                ours.name: partial(idle, ours, split=False),
                slow.name: partial(idle, slow, split=False),
                split: partial(idle, ours, split=True),
            },
        ),
    }
