"""What `/status` tells of the rounds: JSON-able data, ids cut."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fedround.coordinator.attempt import Attempt, State
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.seats import Participant
from fedround.coordinator.shards import coverage
from fedround.text import short

MOST_FAILURES = 50
"""Participants whose last failures are shown."""


def status(rounds: Rounds, now: float, *, reachable: bool = True, faults: Iterable[str] = ()) -> dict[str, Any]:
    """The state of the training at `now`, monotonic seconds. `reachable`: the aggregator; what it lacks is in `faults`."""
    attempt = rounds.attempt
    return {
        "state": _state(rounds, reachable),
        "run": asdict(rounds.run),
        "best": _best(rounds),
        "stopped": rounds.stopped,
        "server_evaluation": _server(rounds),
        "round": rounds.round,
        "rounds": rounds.end,
        "attempt": None if attempt is None else short(attempt.id),
        "counted": 0 if attempt is None else len(attempt.counted),
        "outstanding": 0 if attempt is None else attempt.outstanding,
        "required": rounds.plan.required,
        "quorum": None if attempt is None else attempt.quorum,
        "round_timeout": rounds.plan.round_timeout,
        "aggregator_reachable": reachable,
        "aggregator_faults": list(faults),
        "joined": rounds.present.joined,
        "registered": rounds.present.registered,
        "shards": _shards(rounds),
        "participants": [_participant(rounds, p, now) for p in rounds.present],
        "sitting_out": sum(rounds.reliability.sits_out(p.judged, rounds.round) for p in rounds.present),
        "failures": [
            {"name": r.name, "failures": r.failures, "reason": r.reason, "seconds": round(now - r.at, 3)}
            for r in list(rounds.reliability)[: -MOST_FAILURES - 1 : -1]
        ],
        "failed_attempts": rounds.trouble.lasting,
        "trouble": rounds.trouble.reason,
        "missing": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in rounds.present.missing(now).items()],
        "last_rounds": [
            {
                "round": r.round,
                "seconds": round(r.seconds, 3),
                "counted": r.counted,
                "dropped": r.dropped,
                "late": r.late,
                "samples": r.samples,
                "parameters": r.parameters,
                "figures": dict(r.figures),
                "evaluation": dict(r.evaluation),
                "server": dict(r.server),
                "weights": dict(r.weights),
                **({"rollbacks": r.rollbacks} if r.rollbacks else {}),
            }
            for r in rounds.history
        ],
    }


def _best(rounds: Rounds) -> dict[str, Any] | None:
    best, metric = rounds.best, rounds.plan.goal.metric
    return {"metric": metric, "round": best.round, "value": best.value} if best is not None and metric else None


def _server(rounds: Rounds) -> dict[str, Any] | None:
    server = rounds.server
    if not server.function:
        return None
    return {"function": server.function, "round": server.evaluated if server.evaluated >= 0 else None, "problem": server.problem}


def _shards(rounds: Rounds) -> dict[str, Any] | None:
    """How the shards are held; None where no participant has one."""
    now = coverage(rounds.present)
    return {**asdict(now), "warning": now.warning} if now.count else None


def _shard(p: Participant, attempt: Attempt | None) -> str | None:
    """The shard that a participant trains, or else holds for the next round; None where it did not say that it uses one."""
    member = attempt.members.get(p.id) if attempt else None
    shard = member.shard if member is not None and member.state is not State.IGNORED else p.shard
    return None if shard is None else "{}/{}".format(*shard)


def _participant(rounds: Rounds, p: Participant, now: float) -> dict[str, Any]:
    attempt, record = rounds.attempt, rounds.reliability.get(p.judged)
    return {
        "name": p.name,
        "id": short(p.id),
        "shard": _shard(p, attempt),
        "state": "waiting" if attempt is None or p.id not in attempt.members else attempt.members[p.id].state.value,
        "seconds_since_contact": round(now - p.seen, 3),
        "counted": p.counted,
        "selected_rounds": p.selected_rounds,
        "counted_rounds": p.counted_rounds,
        "trouble": p.trouble,
        "failures": record.failures if record else 0,
        "sits_out_until": record.until if record and rounds.round < record.until else None,
    }


def _state(rounds: Rounds, reachable: bool) -> str:
    if rounds.complete:
        return "complete"
    if rounds.attempt is not None and not rounds.attempt.train:
        return "evaluating the final model"
    if rounds.attempt is None and rounds.server.awaited:
        return "waiting for the aggregator's evaluation of the final model"
    standing_by = coverage(rounds.present).standing_by if rounds.attempt is None else 0
    if (able := len(rounds.present) - standing_by) < rounds.plan.min_clients:
        more = f"; {standing_by} stand by, since there are too few shards" if standing_by else ""
        return f"waiting for participants: {able} of {rounds.plan.min_clients}{more}"
    return "training" if reachable and rounds.incarnation else "waiting for the aggregator"
