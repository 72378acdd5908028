"""The text and the level of the log line about each fact that an operator should know."""

import logging

from fedround import events
from fedround.common.text import short
from fedround.events import Fact

Line = tuple[int, str]
"""The level and the text of a log line."""


DROPPED = {"silent": "timed out", "deadline": "missed the deadline", "replaced": "replaced by a newer registration"}
"""Why a participant was dropped from a round, by the reason of the event."""


def line(fact: Fact) -> Line | None:
    """Return the line about a fact; None if only DEBUG shows it."""
    return _participant_line(fact) or _membership_line(fact) or _round_line(fact) or _run_line(fact) or _aggregator_line(fact)


def _participant_line(fact: Fact) -> Line | None:
    match fact:
        case events.StateChanged(state=state, draining=draining) if draining or state in ("finished", "stopped"):
            ended = {"finished": "finished: training is complete", "stopped": "stopped"}
            return logging.INFO, ended.get(state, f"draining: asked to stop while {state}")
        case events.Registered(id, reason):
            return logging.INFO, f"registered as {short(id)}" + ("" if reason == "start" else f" ({reason})")
        case events.RoundJoined(number, train=False):
            return logging.INFO, f"evaluating the final model, after {_many(number, 'round')}"
        case events.RoundJoined(number, repeated):
            return logging.INFO, f"round {number}: " + (
                "the coordinator requests the same update again" if repeated else "selected"
            )
        case events.ShardAssigned(index, count):
            return logging.INFO, f"training on shard {index}/{count}"
        case events.RoundEnded(_, "evaluated", seconds):
            return logging.INFO, f"evaluated the final model in {seconds:.2f} s"
        case events.RoundEnded(number, outcome, seconds, reason):
            level = logging.WARNING if outcome in ("failed", "refused") else logging.INFO
            return level, f"round {number} {outcome} after {seconds:.2f} s" + (f": {reason}" if reason else "")
        case events.MetricsReported(number, metrics):
            return logging.INFO, f"round {number}: {_metrics(metrics)}"
        case events.WorkerEnded(_, reason, pause):
            return logging.WARNING, f"the training process {reason}; starting another one" + (f" in {pause:.1f} s" if pause else "")
    return None


def _membership_line(fact: Fact) -> Line | None:
    match fact:
        case events.ParticipantJoined(id, name):
            return logging.INFO, f"participant {name} joined as {short(id)}"
        case events.ParticipantGone(id, name, "failed", detail):
            return logging.WARNING, f"participant {name} ({short(id)}) left because of a failure: {detail}"
        case events.ParticipantGone(id, name, "replaced"):
            return logging.INFO, f"participant {name} ({short(id)}) was replaced by a newer registration"
        case events.ParticipantGone(id, name, "silent"):
            return logging.WARNING, f"participant {name} ({short(id)}) timed out: it missed its heartbeats"
        case events.ParticipantGone(id, name):
            return logging.INFO, f"participant {name} ({short(id)}) left"
        case events.SatOut(_, name, failures, rounds, reason):
            return logging.WARNING, (
                f"participant {name} sits out {_many(rounds, 'round')} after {_many(failures, 'consecutive failure')}: {reason}"
            )
        case events.ShardsChanged(warning=str(warning)) if warning:
            return logging.WARNING, warning
        case events.ShardsChanged(count, standing_by=standing_by):
            more = f"; standing by: {_many(standing_by, 'participant')}" if standing_by else ""
            return logging.INFO, f"each of the {count} shards has one participant{more}"
    return None


def _round_line(fact: Fact) -> Line | None:
    match fact:
        case events.QuorumRaised(number, asked, selected, min_clients):
            return logging.WARNING, (
                f"round {number} waits for all {selected} participants, although the quorum is {asked}: lower "
                f"COORDINATOR_MIN_CLIENTS={min_clients} to {asked} so that slow participants do not delay rounds"
            )
        case events.Selected(_, ids, False):
            return logging.INFO, f"evaluation of the final model: {_many(len(ids), 'participant')} selected"
        case events.Selected(number, ids):
            return logging.INFO, f"round {number}: {_many(len(ids), 'participant')} selected"
        case events.Revoked(number, id, "late", name):
            return logging.INFO, f"round {number}: participant {name} ({short(id)}) was late: the round closed by its quorum"
        case events.Revoked(number, id, reason, name, detail, seconds, phase):
            why = detail or DROPPED.get(reason, reason)
            return logging.WARNING, (
                f"round {number}: dropped participant {name} ({short(id)}) after {seconds:.1f} s ({phase}): {why}"
            )
        case events.AttemptDropped(number, _, counted, reason, _, _, pause):
            return (
                logging.WARNING,
                f"round {number} restarts in {pause:g} s; {_many(counted, 'counted update')} discarded: {reason}",
            )
        case events.RoundCompleted(number, _, ids, dropped, samples, parameters, seconds, metrics, late=late):
            parts = [
                _many(len(ids), "update"),
                f"{dropped} dropped" if dropped else "",
                f"{late} late" if late else "",
                _many(samples, "sample"),
                _many(parameters, "parameter") if parameters else "",
                _metrics(metrics),
            ]
            return logging.INFO, f"round {number} completed in {seconds:.2f} s: " + ", ".join(filter(None, parts))
    return None


def _run_line(fact: Fact) -> Line | None:
    match fact:
        case events.RunStarted(id, name):
            return logging.INFO, f"current run: {name} ({short(id)})"
        case events.Evaluated(number, _, metrics, lowest, highest, members):
            low, high = dict(lowest), dict(highest)
            means = " ".join(f"{name}={value:.6g} ({low[name]:.6g} to {high[name]:.6g})" for name, value in metrics)
            return logging.INFO, f"{_model(number)} evaluated by {_many(len(members), 'participant')}: {means}"
        case events.ServerEvaluated(number, _, metrics):
            return logging.INFO, f"{_model(number)} evaluated by the aggregator: {_metrics(metrics)}"
        case events.FinalNotEvaluated(number, seconds):
            return (
                logging.WARNING,
                f"the aggregator did not evaluate the final model within {seconds:g} s; the run ends without it: round {number}",
            )
        case events.MetricMissing(setting, reason):
            return logging.WARNING, f"{setting}: {reason}"
        case events.ModelsLost(number, newest):
            there = "without a model" if newest is None else f"from the model of round {newest}"
            return logging.WARNING, f"the aggregator has lost the model of round {number}: training continues {there}"
        case events.RolledBack(number, newest):
            return logging.WARNING, f"rolled back in round {number}: training continues from the model of round {newest}"
        case events.Suspended(seconds):
            return logging.WARNING, f"this process was suspended for {seconds:.1f} s; heartbeat time-outs were extended"
        case events.TrainingCompleted(rounds, reason):
            return logging.INFO, f"training complete after {_many(rounds, 'round')}" + (
                f", stopped early: {reason}" if reason else ""
            )
    return None


def _aggregator_line(fact: Fact) -> Line | None:
    match fact:
        case events.ModelEvaluated(function, number, _, metrics, seconds):
            return logging.INFO, f"{_model(number)} evaluated by {function} in {seconds:.3f} s: {_metrics(metrics)}"
        case events.ModelsRolledBack(number, removed):
            return (
                logging.WARNING,
                f"rolled back: the model of round {number} is the newest, {_many(removed, 'later model')} removed",
            )
        case events.UpdateReceived(id, outcome, size, reason) if outcome != "accepted":
            level = logging.INFO if outcome == "repeated" else logging.WARNING
            return level, f"update of {short(id)} ({size} bytes): {outcome}" + (f", {reason}" if reason else "")
        case events.Dominated(number, id, share):
            return logging.WARNING, f"round {number}: one update has {share:.1%} of all samples, that of {short(id)}"
        case events.UploadFailed(id, reason):
            return logging.WARNING, f"update of {short(id)} did not arrive completely: {reason}"
        case events.SaveFailed(what, reason):
            return logging.ERROR, f"{what} cannot be written to the data directory; retrying: {reason}"
        case events.Aggregated(number, updates, parameters, seconds):
            what = _many(parameters, "parameter") if parameters else "a model"
            return logging.INFO, f"round {number}: {what} aggregated from {_many(updates, 'update')} in {seconds:.3f} s"
    return None


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _model(round: int | None) -> str:
    return "initial model" if round is None else f"model of round {round}"


def _metrics(metrics: tuple[tuple[str, float], ...]) -> str:
    return " ".join(f"{name}={value:.6g}" for name, value in metrics)
