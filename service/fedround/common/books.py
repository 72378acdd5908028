"""The books: what counted, kept by the aggregator alone, and the five operations by which the coordinator works with them.

The coordinator calls them directly (`fedround platform`) or over the aggregator's internal port (`remote_books.RemoteBooks`).
All of them are idempotent and keyed by an *attempt* of a round, so a caller that got no answer asks again.
This file owns the messages and their JSON; it does no I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Protocol

from fedround.common.wire import MAX_FIGURE_NAME, MAX_FIGURES
from fedround.tensors.figures import LARGEST


class Verdict(StrEnum):
    """What `revoke` found."""

    REVOKED = "revoked"
    """The token is dead, nothing of it was counted, nothing ever will be."""
    COUNTED = "counted"
    """Too late: the update is in the sum."""
    RECEIVING = "receiving"
    """The update is arriving now, and may be whole in time; nothing was revoked: ask again."""


class Outcome(StrEnum):
    """What became of an update."""

    COUNTED = "counted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Admission:
    """The right of one participant to deliver one update to one attempt."""

    id: str
    token: str
    owner: str = ""
    """The proved identity that alone may use it; empty: everybody that bears the token."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a participant found the model of `round` to be like on its own data; None: the model that the run began with."""

    round: int | None
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `seq` rises by one from 1 within an incarnation; counted entries are in the order of folding."""

    seq: int
    attempt: str
    id: str
    outcome: Outcome
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the participant reported with its update."""
    reason: str = ""
    """Why the update was refused, for people."""
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest model that was trained."""

    round: int
    parameters: int
    run: str = ""
    """The name of the run that it was trained in; empty where the aggregator does not know."""


@dataclass(frozen=True, slots=True)
class Run:
    """The run that an attempt belongs to."""

    id: str = ""
    name: str = ""


NO_RUN = Run()


@dataclass(frozen=True, slots=True)
class Measured:
    """What the weights of a round's model are like: figures that people are shown, all finite."""

    round: int
    figures: Mapping[str, float]
    digest: str = ""
    """SHA-256 of the model's file, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class ServerEvaluation:
    """How the aggregator's own function evaluated the model of `round`; None: the model that the run of that name began with.

    Without metrics there is a `reason` for people: the evaluation failed, or the function wanted none.
    """

    round: int | None
    run: str
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """The entries that were not acknowledged. Another `incarnation` than before: the sum was lost, and `seq` begins anew.

    The round of `newest` is over, even if nobody was told that it was closed. `measured` (of the last models) and `faults` (why the
    aggregator is not ready) are for people: nothing follows from them.
    """

    incarnation: str
    entries: tuple[Entry, ...]
    newest: Newest | None = None
    measured: tuple[Measured, ...] = ()
    faults: tuple[str, ...] = ()
    lost: str = ""
    """Why the sum before this incarnation was lost: a reason that does not pass by itself. Empty after a restart."""
    generation: int = 0
    """How often an operator made a former model the newest. It grows: the rounds after that of `newest` are void."""
    strategy: str = ""
    """How updates become a model, for people."""
    evaluator: str = ""
    """The function that evaluates models at the aggregator; empty: there is none."""
    evaluations: tuple[ServerEvaluation, ...] = ()
    """The last evaluations by that function, the oldest first. Each comes on several pages. Models may be skipped."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The attempt is closed and its result is the global model, which `parameters` weights make up; 0 where nobody can tell."""

    parameters: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The attempt stays open: the ledger holds other ids than the coordinator expected."""

    missing: frozenset[str]
    """Expected, not counted."""
    surplus: frozenset[str]
    """Counted, not expected."""


@dataclass(frozen=True, slots=True)
class Open:
    """Ask the books to `open`."""

    attempt: str
    round: int
    admissions: tuple[Admission, ...]
    forget: tuple[str, ...] = ()
    run: Run = NO_RUN
    train: bool = True


@dataclass(frozen=True, slots=True)
class Admit:
    """Ask the books to `admit`."""

    attempt: str
    admissions: tuple[Admission, ...]


@dataclass(frozen=True, slots=True)
class Revoke:
    """Ask the books to `revoke`."""

    attempt: str
    id: str
    patience: float = 0.0


@dataclass(frozen=True, slots=True)
class Close:
    """Ask the books to `close`."""

    attempt: str
    ids: tuple[str, ...]


Call = Open | Admit | Revoke | Close
Answer = None | Verdict | Closed | Difference


class Books(Protocol):
    """The five operations. Every one may raise `ExchangeError` where the aggregator is not in this process."""

    async def open(self, call: Open) -> None:
        """Begin an attempt; whatever an unclosed one before it had collected is thrown away.

        `forget` names ids that are gone: their last counted tokens are good for nothing any more. The first attempt of another
        `run` than that of the newest model begins with the aggregator's initial model, if it has one. Without `train` updates are
        empty: only evaluations come with them, and no model is made.
        """
        ...

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """Let more participants deliver. Raises `UnknownAttempt`."""
        ...

    async def revoke(self, attempt: str, id: str, patience: float = 0.0) -> Verdict:
        """Take a right back, if it is not too late.

        An update that is arriving, and can be whole within `patience` seconds at its rate so far, goes on for now; any other is
        cut. Raises `UnknownAttempt`.
        """
        ...

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        """Make the counted updates the global model, if they are those of `ids`. Raises `UnknownAttempt`."""
        ...

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        """Wait (up to some 20 s) for entries after number `after`, and acknowledge those up to it.

        Asked for another incarnation than its own, the aggregator acknowledges nothing and answers at once, from its first entry.
        It keeps the model of the round `best`, which is the best of its run so far.
        """
        ...


async def carry_out(books: Books, call: Call) -> Answer:
    """Make the call, and hand on what it returns or raises."""
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


def figures(reported: object) -> dict[str, float]:
    """What of a JSON value are figures that can be averaged, kept and shown: the first few of them; the rest is left out."""
    found = reported.items() if isinstance(reported, dict) else ()
    return dict(islice(((name, float(value)) for name, value in found if _is_figure(name, value)), MAX_FIGURES))


def _is_figure(name: str, value: object) -> bool:
    # Names go into logs as they are. Not even sums of values that large overflow.
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return number and 0 < len(name) <= MAX_FIGURE_NAME and name.isprintable()


def page_to_json(page: Page) -> dict[str, Any]:
    return {
        "incarnation": page.incarnation,
        "entries": [
            [e.seq, e.attempt, e.id, e.outcome, e.samples, dict(e.metrics), e.reason, _evaluation_to_json(e.evaluation)]
            for e in page.entries
        ],
        "newest": page.newest and [page.newest.round, page.newest.parameters, page.newest.run],
        "measured": [[m.round, dict(m.figures), m.digest] for m in page.measured],
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
            Entry(seq, attempt, id, Outcome(outcome), samples, figures(metrics), *reason[:1], *map(_evaluation, reason[1:]))
            for seq, attempt, id, outcome, samples, metrics, *reason in data["entries"]
        ),
        newest=None if data["newest"] is None else Newest(*data["newest"]),
        measured=tuple(Measured(round, figures(found), *digest) for round, found, *digest in data["measured"]),
        faults=tuple(data["faults"]),
        lost=data.get("lost", ""),
        generation=int(data.get("generation", 0)),
        strategy=data.get("strategy", ""),
        evaluator=data.get("evaluator", ""),
        evaluations=tuple(
            ServerEvaluation(round, run, samples, figures(metrics), reason)
            for round, run, samples, metrics, reason in data.get("evaluations", ())
        ),
    )


def _evaluation_to_json(evaluation: Evaluation | None) -> list[Any] | None:
    return None if evaluation is None else [evaluation.round, evaluation.samples, dict(evaluation.metrics)]


def _evaluation(data: Any) -> Evaluation | None:
    if data is None:
        return None
    round, samples, metrics = data
    return Evaluation(round, samples, figures(metrics))


def admissions_to_json(admissions: Sequence[Admission]) -> list[list[str]]:
    return [[a.id, a.token, a.owner] for a in admissions]


def admissions_from_json(data: list[list[str]]) -> list[Admission]:
    return [Admission(id, token, *owner) for id, token, *owner in data]
