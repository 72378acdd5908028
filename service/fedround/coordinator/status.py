"""The content of the coordinator's `/status`, and the values of its metrics by participant. JSON-able, with shortened ids."""

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import asdict
from typing import Any

from fedround.common.text import short
from fedround.common.wire import MAX_METRICS, Shard
from fedround.coordinator.attempt import Attempt, State
from fedround.coordinator.history import Past
from fedround.coordinator.reliability import Record
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.run import config_of
from fedround.coordinator.seats import Participant
from fedround.coordinator.shards import coverage
from fedround.coordinator.silos import AT_WORK, REASONS, Failure, Phase, Silo, Silos, phase

MOST_FAILURES = 50
"""Maximum number of participants whose last failures are shown."""


def status(
    rounds: Rounds, now: float, silos: Silos | None = None, *, reachable: bool = True, faults: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the content of `/status`.

    Args:
        rounds: The core.
        now: Monotonic seconds.
        silos: The silos, for the last failure of each participant.
        reachable: Whether the coordinator reaches the aggregator.
        faults: The aggregator's faults.
    """
    attempt = rounds.attempt
    return {
        "state": _state(rounds, reachable),
        "run": asdict(rounds.run),
        "best": _best(rounds),
        "stopped": rounds.ending.stopped,
        "server_evaluation": _server(rounds),
        "round": rounds.round,
        "rounds": rounds.end,
        "config": config_of(rounds.plan.config, rounds.round - rounds.run.first),
        "attempt": None if attempt is None else short(attempt.id),
        "attempt_seconds": None if attempt is None else round(now - attempt.begun, 3),
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
        "participants": [_participant(rounds, silos.get(p.name) if silos else None, p, now) for p in rounds.present],
        "sitting_out": sum(rounds.reliability.sits_out(p.failure_key, rounds.round) for p in rounds.present),
        "failures": [_record(record, now) for record in list(rounds.reliability)[: -MOST_FAILURES - 1 : -1]],
        "failed_attempts": rounds.failed_attempts.lasting,
        "trouble": rounds.failed_attempts.reason,
        "missing": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in rounds.present.missing(now).items()],
        "last_rounds": [_past(past) for past in rounds.history],
    }


def _record(record: Record, now: float) -> dict[str, Any]:
    return {"name": record.name, "failures": record.failures, "reason": record.reason, "seconds": round(now - record.at, 3)}


def _past(past: Past) -> dict[str, Any]:
    return {
        "round": past.round,
        "seconds": round(past.seconds, 3),
        "counted": past.counted,
        "dropped": past.dropped,
        "late": past.late,
        "samples": past.samples,
        "parameters": past.parameters,
        "figures": dict(past.figures),
        "evaluation": dict(past.evaluation),
        "server": dict(past.server),
        "weights": dict(past.weights),
        **({"rollbacks": past.rollbacks} if past.rollbacks else {}),
    }


def _best(rounds: Rounds) -> dict[str, Any] | None:
    best, metric = rounds.ending.best, rounds.plan.goal.metric
    return {"metric": metric, "round": best.round, "value": best.value} if best is not None and metric else None


def _server(rounds: Rounds) -> dict[str, Any] | None:
    server = rounds.ending.server
    if not server.function:
        return None
    return {"function": server.function, "round": server.evaluated if server.evaluated >= 0 else None, "problem": server.problem}


def _shards(rounds: Rounds) -> dict[str, Any] | None:
    """Return which shards are held; None if no participant has one."""
    now = coverage(rounds.present)
    return {**asdict(now), "warning": now.warning} if now.count else None


def _shard(p: Participant, attempt: Attempt | None) -> Shard | None:
    """Return the shard that a participant trains, or holds for the next round; None if it has none."""
    member = attempt.members.get(p.id) if attempt else None
    return member.shard if member is not None and member.state is not State.IGNORED else p.shard


def by_name(rounds: Rounds, silos: Silos, now: float, unix: float, most: int) -> dict[str, Any]:
    """Return the values of the metrics of at most `most` silos, and the number of `omitted` silos.

    `now` is in monotonic seconds, and `unix` the same moment in Unix time.
    """
    shown, omitted = silos.shown(now, most)
    names = Counter(name for silo in shown for name in {**silo.training, **silo.evaluation})
    common = {name for name, _ in names.most_common(MAX_METRICS)}
    return {"silos": [_silo(rounds, silo, common, now, unix) for silo in shown], "omitted": omitted}


def _silo(rounds: Rounds, silo: Silo, names: Container[str], now: float, unix: float) -> dict[str, Any]:
    phases = [phase(seat, rounds.attempt, rounds.reliability, rounds.round) for seat in silo.seats.values()]
    absent = Phase.MISSING if silo.lost else Phase.GONE
    current, since = min(phases, key=lambda one: (one[0] not in AT_WORK, one[1]), default=(absent, silo.gone_at))
    shards = [shard for seat in silo.seats.values() if (shard := _shard(seat, rounds.attempt))]
    not_before, not_after = silo.certificate or (None, None)
    return {
        "name": silo.name,
        "up": bool(silo.seats),
        "seats": len(silo.seats),
        "last_contact_timestamp_seconds": unix - now + max((seat.seen for seat in silo.seats.values()), default=silo.seen),
        "phase": {one.value: one is current for one in Phase},
        "phase_started_timestamp_seconds": unix - now + since,
        "last_counted_round": silo.counted,
        "rounds_counted": silo.rounds,
        "round_duration_seconds": silo.seconds,
        "dominated_rounds": silo.dominated,
        "failures": {reason: silo.failures[reason] for reason in REASONS},
        "consecutive_failures": {silo.failure.reason: silo.consecutive} if silo.failure and silo.consecutive else {},
        "missed_deadlines": silo.missed,
        "late": silo.late,
        "shard": shards[0][0] if shards else None,
        "certificate_not_before_timestamp_seconds": not_before,
        "certificate_not_after_timestamp_seconds": not_after,
        "training_metric": {name: value for name, value in silo.training.items() if name in names},
        "evaluation_metric": {name: value for name, value in silo.evaluation.items() if name in names},
    }


def _failure(failure: Failure, now: float) -> dict[str, Any]:
    return {
        "round": failure.round,
        "reason": failure.reason,
        "detail": failure.detail,
        "phase": failure.phase,
        "seconds": None if failure.seconds is None else round(failure.seconds, 3),
        "seconds_ago": round(now - failure.at, 3),
    }


def _participant(rounds: Rounds, silo: Silo | None, p: Participant, now: float) -> dict[str, Any]:
    attempt, record = rounds.attempt, rounds.reliability.get(p.failure_key)
    member = attempt.members.get(p.id) if attempt else None
    current, since = phase(p, attempt, rounds.reliability, rounds.round)
    shard = _shard(p, attempt)
    return {
        "name": p.name,
        "id": short(p.id),
        "shard": None if shard is None else "{}/{}".format(*shard),
        "state": "waiting" if member is None else member.state.value,
        "phase": current.value,
        "phase_seconds": round(now - since, 3),
        "seconds_since_selection": None if member is None or member.selected_at > now else round(now - member.selected_at, 3),
        "seconds_since_contact": round(now - p.seen, 3),
        "counted": p.counted,
        "selected_rounds": p.selected_rounds,
        "counted_rounds": p.counted_rounds,
        "trouble": p.trouble,
        "failures": record.failures if record else 0,
        "sits_out_until": record.until if record and rounds.round < record.until else None,
        "last_failure": _failure(silo.failure, now) if silo and silo.failure else None,
    }


def _state(rounds: Rounds, reachable: bool) -> str:
    if rounds.complete:
        return "complete"
    if rounds.attempt is not None and not rounds.attempt.train:
        return "evaluating the final model"
    if rounds.attempt is None and rounds.ending.server.awaited:
        return "waiting for the aggregator's evaluation of the final model"
    standing_by = coverage(rounds.present).standing_by if rounds.attempt is None else 0
    if (able := len(rounds.present) - standing_by) < rounds.plan.min_clients:
        more = f"; {standing_by} standing by, because there are too few shards" if standing_by else ""
        return f"waiting for participants: {able} of {rounds.plan.min_clients}{more}"
    return "training" if reachable and rounds.incarnation else "waiting for the aggregator"
