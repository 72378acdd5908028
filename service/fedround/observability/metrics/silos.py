"""The coordinator's metrics about each participant, by its name."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_FAMILIES: tuple[tuple[type[GaugeMetricFamily | CounterMetricFamily], str, str, str], ...] = (
    # type, name, label besides `participant`, help
    (GaugeMetricFamily, "up", "", "1 if a participant with this name is present, 0 for one hour after the last one left."),
    (GaugeMetricFamily, "seats", "", "Number of present participants with this name. They share its series."),
    (GaugeMetricFamily, "last_contact_timestamp_seconds", "", "Time of the last contact, in Unix time."),
    (GaugeMetricFamily, "phase", "phase", "1 for the current phase, 0 for all others."),
    (GaugeMetricFamily, "phase_started_timestamp_seconds", "", "Time at which the current phase began, in Unix time."),
    (GaugeMetricFamily, "last_counted_round", "", "Last round in which an update was counted."),
    (CounterMetricFamily, "rounds_counted", "", "Number of completed rounds that counted an update."),
    (
        GaugeMetricFamily,
        "round_duration_seconds",
        "",
        "Time from selection to the counted update, in seconds, in the last round that counted one.",
    ),
    (
        CounterMetricFamily,
        "dominated_rounds",
        "",
        "Number of completed rounds with three or more updates in which this participant had more than half of all samples.",
    ),
    (CounterMetricFamily, "failures", "reason", "Number of failures, by reason."),
    (
        GaugeMetricFamily,
        "consecutive_failures",
        "reason",
        "Number of failures since the last counted update, with the reason of the last one. No series without a failure.",
    ),
    (GaugeMetricFamily, "missed_deadlines", "", "Number of missed deadlines since the last counted update."),
    (CounterMetricFamily, "late", "", "Number of rounds that closed by their quorum before the participant's update was counted."),
    (GaugeMetricFamily, "shard", "", "Index of the shard of the data that the participant trains on, counted from 0."),
    (
        GaugeMetricFamily,
        "certificate_not_before_timestamp_seconds",
        "",
        "Start of the validity of the participant's client certificate, in Unix time.",
    ),
    (
        GaugeMetricFamily,
        "certificate_not_after_timestamp_seconds",
        "",
        "End of the validity of the participant's client certificate, in Unix time.",
    ),
    (GaugeMetricFamily, "training_metric", "name", "Metrics of training in the last completed round that counted an update."),
    (GaugeMetricFamily, "evaluation_metric", "name", "Metrics of the last evaluation of a global model."),
)


def families(prefix: str, status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield all families; without participants they have no samples. `status`: the result of `coordinator.status.by_name`."""
    for kind, name, label, help in _FAMILIES:
        family = kind(f"{prefix}participant_{name}", help, labels=["participant", label] if label else ["participant"])
        for silo in status["silos"]:
            value = silo[name]
            if label:
                for key, one in value.items():
                    family.add_metric([silo["name"], key], one)
            elif value is not None:
                family.add_metric([silo["name"]], value)
        yield family
    yield GaugeMetricFamily(
        f"{prefix}participants_omitted",
        "Number of participants without their own series because of COORDINATOR_METRICS_PARTICIPANTS.",
        value=status["omitted"],
    )
