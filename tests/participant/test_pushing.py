"""Which telemetry of a participant may leave the silo."""

import pytest

from fedround.common.settings import ParticipantSettings
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.participant.pushing import Allowed
from observability.test_metrics import LOCAL, WEIGHTS, told

LOCAL_LABELS, GLOBAL = {"source": "local"}, {"source": "global"}


@pytest.mark.parametrize(
    ("patterns", "name", "labels", "leaves"),
    [
        (["fedround_*"], "fedround_participant_state", {}, True),
        (["fedround_*"], "process_cpu_seconds_total", {}, False),
        (["fedround_*"], "fedround_participant_weight_mean", GLOBAL, True),
        (["fedround_*", "*"], "fedround_participant_weight_mean", LOCAL_LABELS, False),
        (['fedround_*{source="local"}'], "fedround_participant_weight_mean", LOCAL_LABELS, True),
        (['fedround_*{source="local"}'], "fedround_participant_weight_mean", GLOBAL, False),
        ([], "fedround_participant_state", {}, False),
    ],
)
def test_series_that_match_a_pattern_are_pushed(patterns: list[str], name: str, labels: dict[str, str], leaves: bool) -> None:
    assert Allowed(patterns).series(name, labels) is leaves


def test_spans_are_pushed_by_the_name_of_their_scope() -> None:
    allowed = Allowed(["fedround", "my_project.*", 'secrets{source="local"}'])
    assert [allowed.scope(name) for name in ("fedround", "my_project.data", "my_project", "secrets")] == [True, True, False, False]


def test_by_default_all_is_pushed_except_metrics_of_the_local_model() -> None:
    default = ParticipantSettings(coordinator_url="http://c:8081", class_="a:B", name="anna").push_allow
    allowed = Allowed(default)
    samples = [
        each for family in told(ParticipantMetrics(local_values=True), WEIGHTS, LOCAL).registry.collect() for each in family.samples
    ]
    stays = [each for each in samples if not allowed.series(each.name, each.labels)]
    assert stays
    assert {each.labels["source"] for each in stays} == {"local"}
    assert not [each for each in samples if each.labels.get("source") == "local" and each not in stays]
    assert allowed.scope("fedround")
    assert not allowed.scope("my_project")
