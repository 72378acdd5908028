"""The books: the internal API through which the coordinator controls the aggregator and reads its ledger. No I/O.

The coordinator calls the five operations directly (`fedround platform`) or over the aggregator's internal port
(`remote_books.RemoteBooks`). Each is idempotent and names an *attempt* of a round, so the coordinator repeats a call without a
response. This file owns the messages and their JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Protocol

from fedround.common.wire import MAX_METRIC_NAME, MAX_METRICS
from fedround.tensors.statistics import LARGEST


class Verdict(StrEnum):
    """The result of `revoke`."""

    REVOKED = "revoked"
    """The upload permission is revoked: no update with it was or will be counted."""
    COUNTED = "counted"
    """Too late: the update is in the aggregate."""
    RECEIVING = "receiving"
    """The update is arriving, and may be complete in time. Nothing was revoked yet: call again."""


class Outcome(StrEnum):
    """The outcome of an update."""

    COUNTED = "counted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Admission:
    """The permission of one participant to upload one update in one attempt."""

    id: str
    token: str
    owner: str = ""
    """The identity that may use the token. Empty: any client."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A participant's evaluation of the model of `round` on its own data. Without a `round`, it is the run's initial model."""

    round: int | None
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. Within an incarnation, `seq` counts from 1. Counted entries are in the order of folding."""

    seq: int
    attempt: str
    id: str
    outcome: Outcome
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics that the participant reported with its update."""
    reason: str = ""
    """Why the update was refused, for operators."""
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest trained model of the aggregator."""

    round: int
    parameters: int
    run: str = ""
    """Name of the run that trained it. Empty: unknown."""


@dataclass(frozen=True, slots=True)
class Run:
    """The run that an attempt belongs to."""

    id: str = ""
    name: str = ""


NO_RUN = Run()


@dataclass(frozen=True, slots=True)
class Measured:
    """Statistics of the weights of a round's model, for operators. All are finite."""

    round: int
    summary: Mapping[str, float]
    digest: str = ""
    """SHA-256 of the model's file, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class ServerEvaluation:
    """The aggregator's evaluation of the model of `round`. Without a `round`, it is the initial model of the run of this name.

    Without metrics, `reason` explains it: the evaluation failed, or the function returned None.
    """

    round: int | None
    run: str
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the ledger: the entries that the coordinator has not acknowledged, and the state of the aggregator.

    A new `incarnation` means that the aggregate was lost, and that `seq` starts again at 1. The round of `newest` is over, even if
    the response to `close` was lost. `measured` (statistics of the last models) and `faults` (why the aggregator is not ready) are
    for operators: no decision depends on them.
    """

    incarnation: str
    entries: tuple[Entry, ...]
    newest: Newest | None = None
    measured: tuple[Measured, ...] = ()
    faults: tuple[str, ...] = ()
    lost: str = ""
    """Why the aggregate before this incarnation was lost: a permanent problem. Empty after a restart."""
    generation: int = 0
    """Number of rollbacks. If it increases, all rounds after that of `newest` are void."""
    strategy: str = ""
    """Name of the strategy, for operators."""
    evaluator: str = ""
    """Name of the function that evaluates models at the aggregator. Empty: none."""
    evaluations: tuple[ServerEvaluation, ...] = ()
    """The last evaluations by that function, oldest first. Each is on several pages, and models may be skipped."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The attempt is closed, and its result is the global model. `parameters` is the number of weights; 0: unknown."""

    parameters: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The attempt stays open, because the ledger's ids differ from those that the coordinator expects."""

    missing: frozenset[str]
    """Ids that the coordinator expects and the ledger lacks."""
    surplus: frozenset[str]
    """Ids that the ledger has and the coordinator does not expect."""


@dataclass(frozen=True, slots=True)
class Open:
    """A call of `Books.open`."""

    attempt: str
    round: int
    admissions: tuple[Admission, ...]
    """Upload permissions."""
    forget: tuple[str, ...] = ()
    """Ids of participants that left. Their last counted tokens become invalid."""
    run: Run = NO_RUN
    """The first attempt of a new run begins with the aggregator's initial model, if there is one."""
    train: bool = True
    """Whether updates contain weights. If not, they contain only evaluations, and the attempt makes no model."""


@dataclass(frozen=True, slots=True)
class Admit:
    """A call of `Books.admit`."""

    attempt: str
    admissions: tuple[Admission, ...]


@dataclass(frozen=True, slots=True)
class Revoke:
    """A call of `Books.revoke`."""

    attempt: str
    id: str
    patience: float = 0.0


@dataclass(frozen=True, slots=True)
class Close:
    """A call of `Books.close`."""

    attempt: str
    ids: tuple[str, ...]


Call = Open | Admit | Revoke | Close
Answer = None | Verdict | Closed | Difference


class Books(Protocol):
    """The five operations. If the aggregator is another process, each may raise `ExchangeError`."""

    async def open(self, call: Open) -> None:
        """Open an attempt, and discard the aggregate of an attempt that was not closed. Raises `UnknownAttempt` if it is over."""
        ...

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """Give more participants an upload permission. Raises `UnknownAttempt`."""
        ...

    async def revoke(self, attempt: str, id: str, patience: float = 0.0) -> Verdict:
        """Revoke an upload permission, unless its update was counted.

        An upload that can finish within `patience` seconds at its rate so far continues for now. All others are aborted. Raises
        `UnknownAttempt`.
        """
        ...

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        """Make the global model if the counted updates are exactly those of `ids`. Raises `UnknownAttempt`."""
        ...

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        """Return the entries after number `after`, and acknowledge the others. Wait up to about 20 s for the first entry.

        With another `incarnation` than its own, the aggregator acknowledges nothing and immediately returns all entries. It stores
        the model of round `best`, the best one of its run so far, for longer than others.
        """
        ...


async def carry_out(books: Books, call: Call) -> Answer:
    """Carry out a call. Return or raise what it returns or raises."""
    match call:
        case Open():
            await books.open(call)
            return None
        case Admit(attempt, admissions):
            await books.admit(attempt, admissions)
            return None
        case Revoke(attempt, id, patience):
            return await books.revoke(attempt, id, patience)
    return await books.close(call.attempt, call.ids)


def valid_metrics(reported: object) -> dict[str, float]:
    """Return the valid metrics in a JSON value, at most `MAX_METRICS`. Ignore the rest."""
    found = reported.items() if isinstance(reported, dict) else ()
    return dict(islice(((name, float(value)) for name, value in found if _is_metric(name, value)), MAX_METRICS))


def _is_metric(name: str, value: object) -> bool:
    # Log lines contain the names unescaped. Sums of values up to `LARGEST` do not overflow.
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return number and 0 < len(name) <= MAX_METRIC_NAME and name.isprintable()


def page_to_json(page: Page) -> dict[str, Any]:
    return {
        "incarnation": page.incarnation,
        "entries": [
            [e.seq, e.attempt, e.id, e.outcome, e.samples, dict(e.metrics), e.reason, _evaluation_to_json(e.evaluation)]
            for e in page.entries
        ],
        "newest": page.newest and [page.newest.round, page.newest.parameters, page.newest.run],
        "measured": [[m.round, dict(m.summary), m.digest] for m in page.measured],
        "faults": page.faults,
        "lost": page.lost,
        "generation": page.generation,
        "strategy": page.strategy,
        "evaluator": page.evaluator,
        "evaluations": [[e.round, e.run, e.samples, dict(e.metrics), e.reason] for e in page.evaluations],
    }


def page_from_json(data: dict[str, Any]) -> Page:
    return Page(
        incarnation=data["incarnation"],
        entries=tuple(
            Entry(seq, attempt, id, Outcome(outcome), samples, valid_metrics(metrics), *reason[:1], *map(_evaluation, reason[1:]))
            for seq, attempt, id, outcome, samples, metrics, *reason in data["entries"]
        ),
        newest=None if data["newest"] is None else Newest(*data["newest"]),
        measured=tuple(Measured(round, valid_metrics(found), *digest) for round, found, *digest in data["measured"]),
        faults=tuple(data["faults"]),
        lost=data.get("lost", ""),
        generation=int(data.get("generation", 0)),
        strategy=data.get("strategy", ""),
        evaluator=data.get("evaluator", ""),
        evaluations=tuple(
            ServerEvaluation(round, run, samples, valid_metrics(metrics), reason)
            for round, run, samples, metrics, reason in data.get("evaluations", ())
        ),
    )


def _evaluation_to_json(evaluation: Evaluation | None) -> list[Any] | None:
    return None if evaluation is None else [evaluation.round, evaluation.samples, dict(evaluation.metrics)]


def _evaluation(data: Any) -> Evaluation | None:
    if data is None:
        return None
    round, samples, metrics = data
    return Evaluation(round, samples, valid_metrics(metrics))


def admissions_to_json(admissions: Sequence[Admission]) -> list[list[str]]:
    return [[a.id, a.token, a.owner] for a in admissions]


def admissions_from_json(data: list[list[str]]) -> list[Admission]:
    return [Admission(id, token, *owner) for id, token, *owner in data]
