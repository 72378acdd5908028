"""The cases of the benchmark."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench.harness import MB, Participants, cpu, platform, pss, rss, theirs

from support.otlp import Span, receiving
from support.processes import Process

Results = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """Variants that are measured in turn. Each returns measurements, and raises `harness.Failed` if its result is wrong."""

    title: str
    note: str
    variants: Mapping[str, Callable[[], Results]]


def rounds(
    kind: Participants, many: int, count: int = 10, settings: Mapping[str, str] = {}, check: Callable[[], object] = bool
) -> Results:
    """Measure the overhead of rounds. `settings` are the platform's; `check` is called while all processes run."""
    size, warm = 5, max(many // 10, 2)
    with platform(min_clients=count, split=False, **settings) as p, kind.at_work(range(count), size, p.url) as participants:

        def used() -> tuple[float, float]:
            return sum(map(cpu, participants)) / count, cpu(p.coordinator.pid)

        began, before = p.completed(*range(warm)), used()
        ended, after = p.completed(*range(warm, warm + many)), used()
        p.check(count, size)
        check()
    a_participant, the_platform = (1000 * (b - a) / many for a, b in zip(before, after, strict=True))
    return {
        "rounds/s": many / (ended - began),
        "participant: CPU ms/round": a_participant,
        "platform: CPU ms/round": the_platform,
    }


def model(kind: Participants, count: int, megabytes: int, many: int, *, split: bool = False) -> Results:
    """Start the other participants, and so the first round, once the first participant and the platform are idle."""
    added = kind.cls != "Ours"
    size = megabytes * MB // (4 if added else 8)
    results: dict[str, float] = {}
    with platform(min_clients=count, split=split) as p, kind.at_work([0], size, p.url) as (first,):
        p.registered(1)
        settle()
        processes = {"participant": first} | {name: service.pid for name, service in p.services.items()}
        idle = {name: rss(pid) for name, pid in processes.items()}
        with kind.at_work(range(1, count), size, p.url):
            began = p.completed(0)
            results["s/round"] = (p.completed(*range(1, many + 1)) - began) / many
            for name, pid in processes.items():
                results[f"{name}: peak MB"] = peak = rss(pid, peak=True)
                results[f"{name}: models above idle"] = (peak - idle[name]) / megabytes
            (p.check_added if added else p.check)(count, size)
    return results


def traced(kind: Participants, many: int) -> Results:
    """Receive all spans of all rounds in this process."""
    with receiving() as (endpoint, receiver):
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        return rounds(replace(kind, settings=tuple(variables.items())), many, 3, variables, partial(receiver.wait_for, everybody))


def everybody(spans: Sequence[Span]) -> bool:
    return {span.service for span in spans} == {"fedround-participant", "fedround-platform"}


def scrape() -> Results:
    """Measure scrapes of a participant and a platform after fifty rounds."""
    with platform(min_clients=1) as p:
        variables = {"PARTICIPANT_CLASS": "bench.ours:Ours", "PARTICIPANT_OPTIONS": '{"k": 0, "size": 32}'}
        participant = Process("participant", PARTICIPANT_COORDINATOR_URL=p.url, **variables)
        try:
            p.completed(*range(50))
            services = {"participant": (participant, "PARTICIPANT_OPS_PORT")}
            services |= {role: (p.coordinator, f"{role.upper()}_OPS_PORT") for role in ("coordinator", "aggregator")}
            return {f"{name}: scrape, ms": answered(*service) for name, service in services.items()}
        finally:
            participant.kill()


def answered(service: Process, port: str) -> float:
    """Return the median time of a scrape during training, in ms."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        service.get(port, "/metrics")
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def idle(kind: Participants, *, split: bool = False) -> Results:
    """Measure a participant that waits for a second one."""
    with platform(min_clients=2, split=split) as p:
        began = time.perf_counter()
        with kind.at_work([0], 5, p.url) as (participant,):
            registered = p.registered(1) - began
            settle()
            processes = {"participant": participant} | {name: service.pid for name, service in p.services.items()}
            used = {f"{name}: MB": rss(pid) for name, pid in processes.items()}
            return {"start to registered, s": registered, **used, "participant: PSS, MB": pss(participant)}


def settle() -> None:
    """Wait until a registered participant has imported its modules and sent its first heartbeats."""
    time.sleep(2)


def cases(quick: bool, count: int, megabytes: int) -> Mapping[str, Case]:
    """Return all cases by the names for `--only`. `quick` makes them short."""
    ours, slow, fast = Participants(), theirs(1.0), theirs(0.05)
    small = {ours: 20, fast: 10, slow: 1} if quick else {ours: 300, fast: 100, slow: 5}
    large = partial(model, count=count, megabytes=megabytes, many=1 if quick else 5)
    split = f"{ours.name}, coordinator and aggregator apart"
    off = {"OTEL_SDK_DISABLED": "true"}
    thread = Participants("fedround, ISOLATION=thread", settings=(("PARTICIPANT_ISOLATION", "thread"),))
    untraced = Participants("OTEL_SDK_DISABLED=true", settings=tuple(off.items()))
    bare = Participants("run_participant, no metrics either", program="bench.ours")
    observed = {
        seconds: {
            "traced, metrics": partial(traced, Participants(seconds=seconds), many),
            untraced.name: partial(rounds, replace(untraced, seconds=seconds), many, 3, off),
            bare.name: partial(rounds, replace(bare, seconds=seconds), many, 3, off),
        }
        for seconds, many in {0.0: 20 if quick else 300, 0.1: 10 if quick else 60}.items()
    }
    return {
        "rounds": Case(
            "Rounds: ten participants, five floats",
            "All participants are processes of their own, the platform is `fedround platform`.",
            {kind.name: partial(rounds, kind, many) for kind, many in small.items()}
            | {thread.name: partial(rounds, thread, small[ours])},
        ),
        "model": Case(
            f"A large model: {count} participants, {megabytes} MB of float64",
            "Peak RSS, and by how many models that is more than before the first round. The participant is one of them.",
            {
                ours.name: partial(large, ours),
                thread.name: partial(large, thread),
                fast.name: partial(large, fast),
                split: partial(large, ours, split=True),
            },
        ),
        "named": Case(
            f"Named tensors: {count} participants, {megabytes} MB of float32 as one array, and as 200 tensors",
            "The tensors are float32, 20 of them float16 and 20 int64. They are trained in place.",
            {
                "one array": partial(large, Participants(cls="Added")),
                "200 named tensors": partial(large, Participants(cls="AddedNamed")),
            },
        ),
        "idle": Case(
            "Idle: one participant that waits",
            "From the start of the process until the coordinator shows it, and the RSS two seconds later.",
            {
                ours.name: partial(idle, ours),
                thread.name: partial(idle, thread),
                untraced.name: partial(idle, untraced),
                slow.name: partial(idle, slow),
                split: partial(idle, ours, split=True),
            },
        ),
        "observed": Case(
            "Observed: three participants, five floats, every span sent to a receiver",
            "What metrics and traces cost. Platform and participants are traced, or neither of them is.",
            observed[0.0],
        ),
        "training": Case(
            "The same with 100 ms of training",
            "Three participants, five floats.",
            observed[0.1],
        ),
        "scrape": Case("A scrape", "`/metrics` of services at work; the median of fifty.", {"fedround": scrape}),
    }
