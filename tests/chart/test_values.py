"""Values of platform teams: on the command line, in a parent chart, and from an older release."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.resources import OTELResourceDetector

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings, parse_duration
from fedround.common.sources import load
from fedround.common.wire import MAX_HOLD
from support.charts import HELM, HELMS, REQUIRED, URL, Objects, pod, pods, rendered, variables

CHARTS = list(REQUIRED)
REMOVABLE = {"resources", "podSecurityContext", "securityContext", "labels", "annotations"}
"""Maps that `null` removes."""
SERVICES = [
    ("participant", "settings", ParticipantSettings),
    ("coordinator", "coordinator.settings", CoordinatorSettings),
    ("coordinator", "aggregator.settings", AggregatorSettings),
]
HOSTS = ("coordinatorHost=a.example.org", "aggregatorHost=b.example.org", "enabled=true")
OUTSIDE = "aggregator.url=https://b.example.org"


def entries(objects: Objects, container: int = 0) -> list[tuple[str, Any]]:
    """Return the variables of a container."""
    return [(found["name"], found.get("value")) for found in pod(objects)["containers"][container]["env"]]


def absent(values: Any, *, whole: bool) -> Any:
    """Return values that remove all of these except the removable maps: `whole` groups where possible, or each value in them."""
    missing = {}
    for key, value in values.items():
        if key not in REMOVABLE:
            divided = isinstance(value, dict) and value and not (whole and REMOVABLE.isdisjoint(value))
            missing[key] = absent(value, whole=whole) if divided else None
    return missing


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("chart", CHARTS)
def test_values_missing_in_an_older_release_get_their_defaults(chart: str, program: str, whole: bool, tmp_path: Path) -> None:
    missing = absent(yaml.safe_load((HELM / chart / "values.yaml").read_text()), whole=whole)
    required = {"coordinator": {"url": "http://fl-coordinator:8081"}} if chart == "participant" else {}
    (older := tmp_path / "older.yaml").write_text(json.dumps(missing | required))
    assert rendered(chart, values=older, program=program) == rendered(chart, *REQUIRED[chart])


@pytest.mark.parametrize("program", HELMS)
def test_null_removes_kubernetes_settings(program: str) -> None:
    spec = pod(rendered("participant", URL, "podSecurityContext=null", "securityContext=null", "resources=null", program=program))
    assert "securityContext" not in spec
    assert {"securityContext", "resources"}.isdisjoint(spec["containers"][0])
    assert "fsGroup" not in pod(rendered("participant", URL, "podSecurityContext.fsGroup=null", program=program))["securityContext"]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_subchart_cannot_be_disabled_silently_without_a_condition(chart: str) -> None:
    assert rendered(chart, *REQUIRED[chart], "enabled=true") == rendered(chart, *REQUIRED[chart])
    with pytest.raises(ValueError, match="no condition of a parent chart reads it"):
        rendered(chart, *REQUIRED[chart], "enabled=false")


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("chart", CHARTS)
def test_global_values_reach_every_pod(chart: str, program: str) -> None:
    given = (
        "image.registry=local.example.org",
        "global.imageRegistry=mirror.example.org",
        'global.imagePullSecrets=["mirror", {"name": "all"}]',
        'imagePullSecrets=[{"name": "local"}, "all"]',
        "global.storageClass=other-charts-read-this",
    )
    for spec in pods(rendered(chart, *REQUIRED[chart], *given, program=program)):
        assert spec["imagePullSecrets"] == [{"name": "mirror"}, {"name": "all"}, {"name": "local"}]
        assert {container["image"] for container in spec["containers"]} == {"mirror.example.org/fedround:0.1.0"}


@pytest.mark.parametrize("wrong", ["[1]", '[""]', '[{"key": "registry"}]', '["a", ["b"]]'])
def test_a_pull_secret_without_a_name_is_refused(wrong: str) -> None:
    for value in ("imagePullSecrets", "global.imagePullSecrets"):
        with pytest.raises(ValueError, match="imagePullSecrets"):
            rendered("coordinator", f"{value}={wrong}")


@pytest.mark.parametrize("program", HELMS)
def test_a_tag_may_look_like_a_number(program: str, tmp_path: Path) -> None:
    def tag(*settings: str, values: Path | None = None) -> str:
        image: str = pod(rendered("coordinator", *settings, values=values, program=program))["containers"][0]["image"]
        return image.partition(":")[2]

    def written(text: str) -> Path:
        (path := tmp_path / "values.yaml").write_text(f"image: {{tag: {text}}}")
        return path

    assert [tag(f"image.tag={given}") for given in ("2", "1.10", "0", "")] == ["2", "1.10", "0", "0.1.0"]
    assert tag(values=written("20260130123000")) == "20260130123000"
    for wrong in ("1.1", "true", '"a b"', "-1"):
        with pytest.raises(ValueError, match="tag"):
            tag(values=written(wrong))


@pytest.mark.parametrize("program", HELMS)
def test_labels_and_annotations_become_strings(program: str) -> None:
    keys = ("commonLabels", "commonAnnotations", "podLabels", "podAnnotations", "nodeSelector", "otel.resourceAttributes")
    more = ("service.annotations", "serviceAccount.annotations", "persistence.annotations")
    given = [setting for key in (*keys, *more) for setting in (f"{key}.number=10000000", f"{key}.truth=true")]
    objects = rendered("coordinator", *given, program=program)
    texts = {"number": "10000000", "truth": "true"}
    workload = objects["StatefulSet", "fl-coordinator"]
    template = workload["spec"]["template"]
    for metadata in (workload["metadata"], template["metadata"]):
        assert texts.items() <= metadata["labels"].items()
        assert texts.items() <= metadata["annotations"].items()
    assert template["spec"]["nodeSelector"] == texts
    assert workload["spec"]["volumeClaimTemplates"][0]["metadata"]["annotations"] == texts
    assert dict(entries(objects))["OTEL_RESOURCE_ATTRIBUTES"].endswith(",number=10000000,truth=true")
    for kind, name in (("Service", "fl-aggregator"), ("ServiceAccount", "fl-coordinator")):
        assert texts.items() <= objects[kind, name]["metadata"]["annotations"].items()


@pytest.mark.parametrize("chart", CHARTS)
def test_a_users_variable_replaces_that_of_the_chart(chart: str) -> None:
    token = f"{chart.upper()}_TOKEN"
    extra = [{"name": "K8S_NODE", "value": "old"}, {"name": token, "value": "x"}, {"name": "K8S_NODE", "value": "n"}]
    found = entries(rendered(chart, *REQUIRED[chart], "token.existingSecret=tokens", f"extraEnv={json.dumps(extra)}"))
    assert len(dict(found)) == len(found)
    assert found[-2:] == [(token, "x"), ("K8S_NODE", "n")]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_users_volume_replaces_that_of_the_chart(chart: str) -> None:
    tmp, more = {"name": "tmp", "emptyDir": {"medium": "Memory"}}, {"name": "more", "emptyDir": {}}
    mount = {"name": "more", "mountPath": "/tmp"}  # noqa: S108 in the container
    given = f"extraVolumes={json.dumps([tmp, more])}", f"extraVolumeMounts={json.dumps([mount])}"
    spec = pod(rendered(chart, *REQUIRED[chart], *given))
    assert [found for found in spec["volumes"] if found["name"] == "tmp"] == [tmp]
    assert [found for found in spec["containers"][0]["volumeMounts"] if found["mountPath"] == mount["mountPath"]] == [mount]


def test_the_volume_of_the_models_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="see persistence"):
        rendered("coordinator", 'extraVolumes=[{"name": "data", "emptyDir": {}}]')


def test_services_may_listen_on_ipv6() -> None:
    assert variables(rendered("participant", URL, "settings.ops_bind=::"))["PARTICIPANT_OPS_BIND"] == "::"
    found = variables(rendered("coordinator", "coordinator.settings.bind=::", "aggregator.settings.bind=::"))
    assert (found["COORDINATOR_BIND"], found["AGGREGATOR_BIND"]) == ("::", "::")


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(("chart", "path", "cls"), SERVICES)
def test_the_default_of_each_setting_can_be_set_on_the_command_line(
    chart: str, path: str, cls: type[Settings], program: str
) -> None:
    objects = rendered(chart, *REQUIRED[chart])
    own = {*variables(objects), *(name for container in (0, -1) for name, _ in entries(objects, container))}
    skipped = re.compile(r".*(port|file|dir)$|internal.*")
    rows = [row for row in cls.rows() if row.default and row.kind != "json" and not skipped.match(row.name)]
    rows = [row for row in rows if row.variable not in own]
    escaped = {row.variable: row.default.replace(",", "\\,") for row in rows}  # a comma separates values of --set
    written = {row.variable: f"{path}.{row.name.rstrip('_')}={escaped[row.variable]}" for row in rows}
    data = variables(rendered(chart, *REQUIRED[chart], *written.values(), program=program))
    assert written.keys() <= data.keys()
    load(cls, {name: value for name, value in data.items() if name.startswith(f"{cls.prefix}_")}, {})


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(
    ("path", "written", "value"),
    [
        ("coordinator.settings.participants_ratio", "0.5", 0.5),
        ("coordinator.settings.participants_ratio", ".5", 0.5),
        ("coordinator.settings.participants_ratio", "1", 1.0),
        ("coordinator.settings.evaluate_ratio", "0.25", 0.25),
        ("coordinator.settings.run_name", "2026", "2026"),
        ("aggregator.settings.max_update_ratio", "250", 250.0),
        ("aggregator.settings.max_update_ratio", "2.5", 2.5),
        ("aggregator.settings.max_update_ratio", "0", 0.0),
        ("aggregator.settings.max_update_norm", "0.5", 0.5),
        ("aggregator.settings.max_update_norm", "1e-3", 0.001),
    ],
)
def test_a_number_on_the_command_line_reaches_the_service(path: str, written: str, value: object, program: str) -> None:
    service, _, name = path.split(".")
    cls = CoordinatorSettings if service == "coordinator" else AggregatorSettings
    data = variables(rendered("coordinator", f"{path}={written}", program=program))
    found = load(cls, {key: text for key, text in data.items() if key.startswith(f"{cls.prefix}_")}, {}).settings
    assert getattr(found, name) == value


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("wrong", ["participants_ratio=0.0", "participants_ratio=1.5", "evaluate_ratio=0", "overselect=many"])
def test_a_number_out_of_range_is_refused(wrong: str, program: str) -> None:
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        rendered("coordinator", f"coordinator.settings.{wrong}", program=program)


@pytest.mark.parametrize("program", HELMS)
def test_names_may_be_templates(program: str) -> None:
    own = "{{ .Release.Name }}-{{ .Chart.Name }}"
    silo = rendered(
        "participant",
        "coordinator.url=http://{{ .Release.Name }}-coordinator:8081",
        "otel.endpoint=http://{{ .Release.Namespace }}:4318",
        f'token.existingSecret="{own}"',
        f'tls.ca.existingSecret="{own}"',
        f'fullnameOverride="{own}-1"',
        'extraEnvFrom=[{"secretRef": {"name": "{{ .Release.Name }}-database"}}]',
        program=program,
    )
    found = variables(silo)
    assert found["PARTICIPANT_COORDINATOR_URL"] == "http://fl-coordinator:8081"
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://default:4318"
    assert ("StatefulSet", "fl-participant-1") in silo
    spec = pod(silo)
    assert spec["volumes"][-1]["secret"]["secretName"] == "fl-participant"
    assert spec["containers"][0]["envFrom"][-1] == {"secretRef": {"name": "fl-database"}}
    platform = rendered(
        "coordinator",
        *(f"ingress.{setting}" for setting in HOSTS),
        "aggregator.url=https://{{ .Values.ingress.aggregatorHost }}",
        'ingress.tlsSecret="{{ .Release.Name }}-tls"',
        'persistence.existingClaim="{{ .Release.Name }}-models"',
        program=program,
    )
    assert variables(platform)["COORDINATOR_AGGREGATOR_URL"] == "https://b.example.org"
    assert platform["Ingress", "fl-coordinator"]["spec"]["tls"][0]["secretName"] == "fl-tls"
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "fl-models"}} in pod(platform)["volumes"]


@pytest.mark.parametrize(("chart", "value"), [("participant", "coordinator.url"), ("coordinator", "aggregator.url")])
def test_a_template_that_renders_no_url_is_refused(chart: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{value}: .fl. is not a URL"):
        rendered(chart, f'{value}="{{{{ .Release.Name }}}}"')


def test_a_gateway_waits_for_held_heartbeats_and_for_large_updates() -> None:
    settings = (OUTSIDE, *(f"httpRoute.{setting}" for setting in HOSTS), 'httpRoute.parentRefs=[{"name": "gateway"}]')

    def timeouts(role: str, *more: str) -> Any:
        (rule,) = rendered("coordinator", *settings, *more)["HTTPRoute", f"fl-{role}"]["spec"]["rules"]
        return rule.get("timeouts")

    assert parse_duration(timeouts("coordinator")["request"]) > 2 * MAX_HOLD
    assert timeouts("aggregator") == {"request": "0s", "backendRequest": "0s"}
    assert timeouts("aggregator", "httpRoute.timeouts.aggregator=1h") == {"request": "1h", "backendRequest": "1h"}
    assert timeouts("coordinator", "httpRoute.timeouts.coordinator=") is None


def test_an_ingress_accepts_bodies_as_large_as_a_model() -> None:
    settings = (OUTSIDE, *(f"ingress.{setting}" for setting in HOSTS))

    def annotations(*more: str) -> dict[str, str]:
        found = rendered("coordinator", *settings, *more)["Ingress", "fl-coordinator"]["metadata"].get("annotations", {})
        return {name.removeprefix("nginx.ingress.kubernetes.io/"): value for name, value in found.items()}

    assert annotations()["proxy-body-size"] == "0"
    assert annotations()["proxy-request-buffering"] == "off"
    assert float(annotations()["proxy-read-timeout"]) > 2 * MAX_HOLD
    body = r"ingress.annotations.nginx\.ingress\.kubernetes\.io/proxy-body-size"
    assert annotations(f"{body}=8g")["proxy-body-size"] == "8g"
    assert "proxy-body-size" not in annotations(f"{body}=null")


@pytest.mark.parametrize("chart", CHARTS)
def test_a_stateful_set_has_its_headless_service(chart: str) -> None:
    objects = rendered(chart, *REQUIRED[chart])
    workload = objects["StatefulSet", f"fl-{chart}"]["spec"]
    service = objects["Service", workload["serviceName"]]["spec"]
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= workload["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("name", ["no", "on", "true", "null", "42", "1e3", "0x1f"])
@pytest.mark.parametrize("chart", CHARTS)
def test_a_release_may_have_a_name_that_yaml_reads_as_another_type(chart: str, name: str, program: str) -> None:
    optional = "podMonitor.enabled=true", "networkPolicy.enabled=true"
    for label, settings, release in (("instance", [], name), ("name", [f'nameOverride="{name}"'], "fl")):
        objects = rendered(chart, *REQUIRED[chart], *settings, *optional, release=release, program=program)
        for (kind, _), found in objects.items():
            expected = f"{name}-test" if (kind, label) == ("Pod", "name") else name
            assert found["metadata"]["labels"][f"app.kubernetes.io/{label}"] == expected
            selector = found.get("spec", {}).get("selector") or found.get("spec", {}).get("podSelector") or {}
            assert selector.get("matchLabels", selector).get(f"app.kubernetes.io/{label}", name) == name


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("chart", CHARTS)
def test_a_users_variable_may_be_a_number_or_a_boolean(chart: str, program: str, tmp_path: Path) -> None:
    file = _written(
        tmp_path, {"extraEnv": [{"name": "A", "value": 5}, {"name": "B", "value": True}, {"name": "C", "value": 9000000}]}
    )
    found = dict(entries(rendered(chart, *REQUIRED[chart], values=file, program=program)))
    assert (found["A"], found["B"], found["C"]) == ("5", "true", "9000000")
    set_ = "extraEnv[0].name=A", "extraEnv[0].value=5"
    assert dict(entries(rendered(chart, *REQUIRED[chart], *set_, program=program)))["A"] == "5"


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("text", ["a,b", "a: b", "a #b", "50%", "a=b", 'say "hi"', "naïve", "a,b=c"])
def test_a_resource_attribute_may_be_any_text(chart: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (given := tmp_path / "values.yaml").write_text(json.dumps({"otel": {"resourceAttributes": {"team": text, "zone": "z"}}}))
    found = dict(entries(rendered(chart, *REQUIRED[chart], values=given)))
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", found["OTEL_RESOURCE_ATTRIBUTES"])
    attributes = OTELResourceDetector().detect().attributes
    assert (attributes["team"], attributes["zone"]) == (text, "z")


def test_the_probes_and_scrapes_of_a_participant_with_tls_on_its_ops_port_use_https() -> None:
    objects = rendered("participant", URL, "settings.ops_tls_cert_file=/tls/tls.crt", "podMonitor.enabled=true")
    (container,) = pod(objects)["containers"]
    assert {container[probe]["httpGet"].get("scheme") for probe in ("livenessProbe", "readinessProbe")} == {"HTTPS"}
    (endpoint,) = objects["PodMonitor", "fl-participant"]["spec"]["podMetricsEndpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]) == ("https", {"insecureSkipVerify": True})
    assert "http://fl-participant" not in json.dumps([found for (kind, _), found in objects.items() if kind == "Pod"])


@pytest.mark.parametrize("program", HELMS)
def test_a_large_limit_of_samples_stays_an_integer(program: str, tmp_path: Path) -> None:
    for chart in CHARTS:
        (given := tmp_path / "values.yaml").write_text("podMonitor: {enabled: true, sampleLimit: 1000000}")
        limit = rendered(chart, *REQUIRED[chart], values=given, program=program)["PodMonitor", f"fl-{chart}"]["spec"]["sampleLimit"]
        assert (limit, type(limit)) == (1000000, int)


@pytest.mark.parametrize("program", HELMS)
def test_whatever_an_umbrella_must_compute_may_be_a_template(program: str, tmp_path: Path) -> None:
    own, labels = "{{ .Release.Name }}-own", {"release": "{{ .Release.Name }}", "count": 10000000}
    rule = [{"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "{{ .Release.Name }}"}}}]
    container = {"name": "more", "image": "busybox", "env": [{"name": "TARGET", "value": "http://{{ .Release.Name }}:80"}]}
    values = {
        "commonLabels": labels,
        "podLabels": labels,
        "otel": {"resourceAttributes": {"federation": own}},
        "initContainers": [container],
        "sidecars": [container],
        "podMonitor": {"enabled": True, "labels": labels},
        "serviceAccount": {"annotations": {"role": own}},
        "networkPolicy": {"enabled": True, "ingressFrom": rule, "egress": [{"to": rule}]},
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [own]}},
        "nodeSelector": {"pool": own},
    }
    platform = {
        "coordinator": {"settings": {"otlp_endpoint": "http://{{ .Release.Name }}-collector:4318"}},
        "prometheusRule": {"enabled": True, "labels": labels},
        "service": {"annotations": {"hostname": f"{own}.example.org"}},
        "ingress": {"enabled": True, "coordinatorHost": "a", "aggregatorHost": "b", "annotations": {"issuer": own}},
        "persistence": {"storageClass": "{{ .Values.global.storageClass }}"},
        "global": {"storageClass": "fast"},
        "httpRoute": {"enabled": True, "coordinatorHost": "a", "aggregatorHost": "b", "parentRefs": [{"name": own}]},
        "aggregator": {"url": "https://b"},
        "tls": {"certificate": {"enabled": True, "issuerRef": {"name": own}, "dnsNames": [f"{own}.example.org"]}},
    }
    silo = {"volumeClaimTemplates": [{"metadata": {"name": "own"}, "spec": {"storageClassName": own}}], "options": {"a": "{{"}}
    for chart, more in (("coordinator", platform), ("participant", silo)):
        (given := tmp_path / "values.yaml").write_text(json.dumps(values | more))
        objects = rendered(chart, *REQUIRED[chart], values=given, program=program)
        text = json.dumps([found for (kind, _), found in objects.items() if kind not in ("PrometheusRule", "ConfigMap")])
        assert "{{" not in text
        assert '"count": "10000000"' in text
        for (kind, _), found in objects.items():
            assert kind == "Pod" or found["metadata"]["labels"]["release"] == "fl"
    data = variables(rendered("coordinator", values=_written(tmp_path, platform), program=program))
    assert data["COORDINATOR_OTLP_ENDPOINT"] == "http://fl-collector:4318"


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("chart", CHARTS)
def test_an_additional_object_may_be_a_text(chart: str, program: str, tmp_path: Path) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-more\n"
    found = rendered(chart, *REQUIRED[chart], values=_written(tmp_path, {"extraObjects": [text]}), program=program)
    assert ("ConfigMap", "fl-more") in found


def test_a_template_of_the_collectors_endpoint_must_render_a_url() -> None:
    with pytest.raises(ValueError, match=r"coordinator\.settings\.otlp_endpoint: .fl. is not a URL"):
        rendered("coordinator", 'coordinator.settings.otlp_endpoint="{{ .Release.Name }}"')


def test_a_registry_may_end_with_a_slash() -> None:
    for value in ("global.imageRegistry", "image.registry"):
        images = {c["image"] for spec in pods(rendered("coordinator", f"{value}=mirror.example.org/")) for c in spec["containers"]}
        assert images == {"mirror.example.org/fedround:0.1.0"}


def _written(directory: Path, values: Any) -> Path:
    (path := directory / "values.yaml").write_text(json.dumps(values))
    return path
