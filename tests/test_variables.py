"""Variables of libraries, often set for other programs: they have their documented effect, or cause one clear error."""

from pathlib import Path

import pytest

from support.processes import ANY_PORT, LOOPBACK, fedround, running

PARTICIPANTS = """
import fedround, numpy

class Steady(fedround.NumPyParticipant):
    def train_round(self, weights, /):
        return 1, numpy.full(5, 1.5)
"""
TRACED = {"OTEL_TRACES_EXPORTER": "otlp"}
HARMLESS = {
    # httpx and ssl: no URL here needs a proxy or an authority.
    "ALL_PROXY": "socks5://nowhere.invalid",
    "HTTP_PROXY": "gopher://[",
    "NO_PROXY": "localhost,fd00:1::/64,[::1],[",
    "REQUEST_METHOD": "GET",
    "SSL_CERT_FILE": "/nope",
    "SSL_CERT_DIR": "/nope",
    "SSLKEYLOGFILE": "",
    # uvicorn
    "WEB_CONCURRENCY": "many",
    "FORWARDED_ALLOW_IPS": "nonsense",
    # prometheus_client
    "PROMETHEUS_DISABLE_CREATED_SERIES": "maybe",
    "PROMETHEUS_LEGACY_NAME_VALIDATION": "maybe",
    # OpenTelemetry: it logs a warning, and uses its defaults.
    "OTEL_BSP_SCHEDULE_DELAY": "soon",
    "OTEL_BSP_EXPORT_TIMEOUT": "soon",
    "OTEL_TRACES_SAMPLER": "nonsense",
    "OTEL_TRACES_SAMPLER_ARG": "x",
    "OTEL_RESOURCE_ATTRIBUTES": "novalue,=,a=%zz",
    "OTEL_PYTHON_CONTEXT": "nonsense",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "nonsense",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://nowhere.invalid:4318",
    "OTEL_METRICS_EXPORTER": "prometheus",
    "OTEL_LOG_LEVEL": "nonsense",
    "OTEL_SDK_DISABLED": "maybe",
    # Python and the C library
    "HOME": "/nope",
    "LANG": "xx_XX",
    "LC_ALL": "xx",
    "PYTHONWARNINGS": "nonsense",
    "TMPDIR": "/nope",
    "TZ": "Nowhere/X",
}
WRONG = [
    {"PROMETHEUS_MULTIPROC_DIR": "/nope"},
    {"SSL_CERT_FILE": "/nope", "PARTICIPANT_COORDINATOR_URL": "https://127.0.0.1:1"},
    {"ALL_PROXY": "socks5://proxy", "PARTICIPANT_COORDINATOR_URL": "http://coordinator.invalid"},
    {"HTTP_PROXY": "http://[", "PARTICIPANT_COORDINATOR_URL": "http://coordinator.invalid"},
    TRACED | {"OTEL_PROPAGATORS": "b3"},
    TRACED | {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"},
    TRACED | {"OTEL_ATTRIBUTE_COUNT_LIMIT": "-1"},
    TRACED | {"OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "1.5"},
    TRACED | {"OTEL_BSP_MAX_QUEUE_SIZE": "-5"},
    TRACED | {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9999999"},
    TRACED | {"OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense"},
    TRACED | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4318"},
    TRACED | {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nope"},
    TRACED | {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
    TRACED | {"OTEL_EXPORTER_OTLP_HEADERS": "novalue"},
    TRACED | {"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"},
    TRACED | {"OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"},
    {"OTEL_TRACES_EXPORTER": "pigeon"},
]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with a participant's class."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PARTICIPANTS)


def test_variables_of_other_programs_do_not_disturb_a_federation() -> None:
    with running("platform", COORDINATOR_ROUNDS="1", **HARMLESS) as platform:
        settings = {"PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"), **LOOPBACK, **ANY_PORT, **HARMLESS}
        done = fedround("participant", "--class", "mine:Steady", **settings)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert platform.end() == 0
    assert "Traceback" not in platform.log


@pytest.mark.parametrize("variables", WRONG, ids=[next(reversed(variables)) for variables in WRONG])
def test_an_unusable_variable_is_named_and_exits_with_78(variables: dict[str, str]) -> None:
    settings = {"PARTICIPANT_COORDINATOR_URL": "http://127.0.0.1:1", "PARTICIPANT_GIVE_UP_AFTER": "1ms"}
    done = fedround("participant", "--class", "mine:Steady", **LOOPBACK, **ANY_PORT, **settings | variables)
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr
    name = next(name for name in reversed(variables) if name not in settings)
    assert name in done.stderr.splitlines()[-1]
