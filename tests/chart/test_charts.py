"""The rendered charts: the objects are valid, and have exactly what the values ask for."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from fedround.common.sources import load
from support.charts import HELM, HELMS, REQUIRED, URL, Object, custom, helm, is_custom, pod, pods, rendered
from support.tools import tool
from support.venvs import ROOT, python

CASES = sorted(path.relative_to(HELM) for path in HELM.glob("*/ci/*-values.yaml") if path.parts[-3] in REQUIRED)


VALIDATE = "kubernetes-validate==1.37.0"
"""The package with the schemas of Kubernetes' own objects."""


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chart_renders_reproducibly_with_both_helm_versions_and_lints(case: Path, program: str) -> None:
    chart = str(case.parts[0])
    assert rendered(chart, values=case) == rendered(chart, values=case, program=program)
    helm("lint", chart, "--strict", "--values", str(case), program=program)


@pytest.fixture(scope="module", params=["1.28.0", "1.37.0"])
def schemas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the schemas of a version of Kubernetes. Their references stay within one directory, as kubeconform requires."""
    (source,) = Path(python(VALIDATE)).parents[1].glob(f"lib/python*/**/v{request.param}-local-strict")
    made = tmp_path_factory.mktemp("schemas")
    for path in source.glob("*.json"):
        schema = json.loads(path.read_text().replace('"/api/_definitions.json', '"_definitions.json'))
        schema.pop("$id", None)
        (made / path.name).write_text(json.dumps(schema))
    return made


@pytest.mark.timeout(300)  # the first of them installs the schemas
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_object_fits_its_schema(case: Path, schemas: Path, tmp_path: Path) -> None:
    objects = rendered(str(case.parts[0]), values=case).values()
    for found in objects:
        if is_custom(found):
            (tmp_path / f"{found['kind']}.json".lower()).write_text(json.dumps(definition(found)))
    command = [tool("kubeconform"), "-strict", "-summary", "-output", "json"]
    for location in (f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", f"{tmp_path}/{{{{.ResourceKind}}}}.json"):
        command += ["-schema-location", location]
    done = subprocess.run(command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["summary"] == {"valid": len(objects), "invalid": 0, "errors": 0, "skipped": 0}


def definition(found: Object) -> Any:
    """Return the schema of a custom resource, in which every key that it does not name is wrong."""
    versions = yaml.safe_load(custom(found).read_text())["spec"]["versions"]
    (version,) = [version for version in versions if found["apiVersion"].endswith(f"/{version['name']}")]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    match schema:
        case {"properties": properties} if set(properties) != {"apiVersion", "kind", "metadata"}:
            return schema | {"properties": {key: closed(inner) for key, inner in properties.items()}, "additionalProperties": False}
        case {"items": items}:
            return schema | {"items": closed(items)}
    return schema


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pod_meets_the_restricted_pod_security_standard(case: Path) -> None:
    for spec in pods(rendered(str(case.parts[0]), values=case)):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        for container in spec["containers"]:
            if container["image"].endswith(("fedround:0.1.0",)):
                context = container["securityContext"]
                assert not context["allowPrivilegeEscalation"]
                assert context["readOnlyRootFilesystem"]
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(
    ("chart", "setting", "complaint"),
    [
        ("participant", "replicas=3", "replicas"),
        ("participant", "replicaCount=many", "replicaCount"),
        ("participant", "kind=DaemonSet", "kind"),
        ("participant", "settings.hearbeat_period=1s", "hearbeat_period"),
        ("participant", "settings.heartbeat_period=fast", "heartbeat_period"),
        ("participant", "settings.give_up_after=soon", "give_up_after"),
        ("participant", "settings.log_format=xml", "log_format"),
        ("participant", "settings.ops_port=1", "the chart sets this one itself"),
        ("participant", "settings.name=me", "the chart sets this one itself"),
        ("participant", "coordinator.url=", "coordinator.url is required"),
        ("participant", "coordinator.url=fl-coordinator", "url"),
        ("participant", "class=HousePrices", "class"),
        ("participant", "podDisruptionBudget.maxUnavailable=few", "maxUnavailable"),
        ("participant", "podMonitor.interval=30", "interval"),
        ("participant", "autoscaling.enabled=true,autoscaling.minReplicas=40", "minReplicas is more than maxReplicas"),
        ("participant", "autoscaling.enabled=true,autoscaling.targetCPUUtilizationPercentage=0", "requires a target or metrics"),
        ("participant", "autoscaling.enabled=true", "shards is required"),
        ("participant", "kind=Deployment,volumeClaimTemplates[0].metadata.name=mine", "requires kind=StatefulSet"),
        ("coordinator", "replicaCount=2", "replicaCount"),
        ("coordinator", "minClients=0", "minClients"),
        ("coordinator", "coordinator.settings.participants_ratio=2", "participants_ratio"),
        ("coordinator", "coordinator.settings.quorum=2.5", "quorum"),
        ("coordinator", "coordinator.settings.overselect=-1", "overselect"),
        ("coordinator", "persistence.size=much", "size"),
        ("coordinator", "aggregator.settings.port=1", "the chart sets this one itself"),
        ("coordinator", "ingress.enabled=true", "coordinatorHost and aggregatorHost are required"),
        ("coordinator", "token.tokensKey=tokens", "requires token.existingSecret"),
        ("coordinator", "coordinator.settings.tls_cert_file=/a.pem", "the chart sets this one itself"),
        ("coordinator", "tls.certificate.enabled=true", "issuerRef.name is required"),
        ("coordinator", "tls.existingSecret=a,tls.certificate.enabled=true", "either existingSecret or certificate.enabled"),
        ("coordinator", "tls.clientCA.existingSecret=a", "only a server with a certificate"),
        ("participant", "tls.existingSecret=a,settings.tls_cert_file=/a.pem", "remove it, or tls.existingSecret"),
        ("participant", "tls.ca.existingSecret=a,settings.tls_ca_file=/a.pem", "remove it, or tls.ca.existingSecret"),
    ],
)
def test_invalid_values_are_refused_with_their_name(chart: str, setting: str, complaint: str, program: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rendered(chart, *REQUIRED[chart], setting, program=program)


def mounted(spec: Any, container: Any) -> dict[str, str]:
    """Return the Secrets by the directory in which they are mounted."""
    volumes = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in spec["volumes"]}
    return {mount["mountPath"]: secret for mount in container["volumeMounts"] if (secret := volumes.get(mount["name"]))}


def test_a_platform_with_certificates_is_reached_only_by_https() -> None:
    objects = rendered("coordinator", "tls.existingSecret=fl-tls", "tls.clientCA.existingSecret=silos")
    spec = pod(objects)
    for container in spec["containers"]:
        assert mounted(spec, container) == {"/etc/fedround-tls": "fl-tls", "/etc/fedround-client-ca": "silos"}
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        for name, file in {
            "CERT": "/etc/fedround-tls/tls.crt",
            "KEY": "/etc/fedround-tls/tls.key",
            "CLIENT_CA": "/etc/fedround-client-ca/ca.crt",
        }.items():
            assert variables[f"{container['name'].upper()}_TLS_{name}_FILE"] == file
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert objects["ConfigMap", "fl-coordinator"]["data"]["COORDINATOR_AGGREGATOR_URL"] == "https://fl-aggregator:8082"
    assert "http://fl" not in json.dumps(list(objects.values()))


def test_the_certificate_of_cert_manager_has_the_names_of_the_services() -> None:
    objects = rendered("coordinator", "tls.certificate.enabled=true", "tls.certificate.issuerRef.name=ca", "service.type=NodePort")
    certificate = objects["Certificate", "fl-coordinator"]["spec"]
    assert certificate["secretName"] in mounted(pod(objects), pod(objects)["containers"][0]).values()
    services = {name for (kind, name), found in objects.items() if kind == "Service" and "ports" in found["spec"]}
    assert services <= set(certificate["dnsNames"])
    assert "fl-aggregator.default.svc.cluster.local" in certificate["dnsNames"]


def test_participants_use_client_certificates_and_an_authority_from_secrets() -> None:
    spec = pod(rendered("participant", URL, "tls.existingSecret=silo-1", "tls.ca.existingSecret=platform"))
    (container,) = spec["containers"]
    assert mounted(spec, container) == {"/etc/fedround-tls": "silo-1", "/etc/fedround-ca": "platform"}
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["PARTICIPANT_TLS_CA_FILE"] == "/etc/fedround-ca/ca.crt"
    assert variables["PARTICIPANT_TLS_CERT_FILE"] == "/etc/fedround-tls/tls.crt"
    assert variables["PARTICIPANT_TLS_KEY_FILE"] == "/etc/fedround-tls/tls.key"


def test_silos_outside_the_cluster_need_the_address_of_the_aggregator() -> None:
    hosts = ("ingress.enabled=true", "ingress.coordinatorHost=a.example.org", "ingress.aggregatorHost=b.example.org")
    with pytest.raises(ValueError, match=r"aggregator\.url is required"):
        rendered("coordinator", *hosts)
    assert ("Ingress", "fl-coordinator") in rendered("coordinator", *hosts, "aggregator.url=https://b.example.org")


@pytest.mark.parametrize("program", HELMS)
def test_numbers_and_objects_reach_the_settings_unchanged(program: str) -> None:
    for chart, cls in (
        ("participant", ParticipantSettings),
        ("coordinator", CoordinatorSettings),
        ("coordinator", AggregatorSettings),
    ):
        objects = rendered(chart, values=Path(chart, "ci", "full-values.yaml"), program=program)
        load(cls, objects["ConfigMap", f"fl-{chart}"]["data"], {})
        if cls is AggregatorSettings:
            assert objects["ConfigMap", "fl-coordinator"]["data"]["AGGREGATOR_STRATEGY_OPTIONS"] == '{"share":0.1}'


@pytest.mark.parametrize(("written", "quorum"), [("0.8", 0.8), ("1.0", 1.0), ("1", 1.0), ("8", 8.0)])
def test_a_quorum_may_be_written_on_the_command_line(written: str, quorum: float) -> None:
    settings = f"coordinator.settings.quorum={written},coordinator.settings.overselect=0.3"
    data = rendered("coordinator", settings)["ConfigMap", "fl-coordinator"]["data"]
    found = load(CoordinatorSettings, {name: value for name, value in data.items() if name.startswith("COORDINATOR_")}, {}).settings
    assert (found.quorum, found.overselect) == (quorum, 0.3)


def test_a_flower_app_replaces_the_class() -> None:
    data = rendered("participant", URL, "flower=package.client_app:app")["ConfigMap", "fl-participant"]["data"]
    assert data["PARTICIPANT_FLOWER"] == "package.client_app:app"
    assert "PARTICIPANT_CLASS" not in data
    assert "PARTICIPANT_FLOWER" not in rendered("participant", URL)["ConfigMap", "fl-participant"]["data"]


@pytest.mark.parametrize("chart", ["coordinator", "participant"])
def test_the_operators_token_reaches_the_services_and_their_scrapers(chart: str) -> None:
    given = "opsToken.existingSecret=operators", "podMonitor.enabled=true"
    required = REQUIRED[chart]
    objects = rendered(chart, *required, *given)
    for container in pod(objects)["containers"]:
        (found,) = [variable for variable in container["env"] if variable["name"].endswith("_OPS_TOKEN")]
        assert found["name"] == f"{container['name'].upper()}_OPS_TOKEN"
        assert found["valueFrom"] == {"secretKeyRef": {"name": "operators", "key": "ops-token"}}
    for scraped in objects["PodMonitor", f"fl-{chart}"]["spec"]["podMetricsEndpoints"]:
        assert scraped["authorization"] == {"credentials": {"name": "operators", "key": "ops-token"}}
    without = rendered(chart, *required, "podMonitor.enabled=true")
    assert "OPS_TOKEN" not in json.dumps(list(without.values()))
    assert "authorization" not in json.dumps(list(without.values()))


@pytest.mark.parametrize(
    ("secrets", "line"),
    [
        ([], "-o model.npy http://localhost:9082/model"),
        (["token"], "set opsToken.existingSecret first"),
        (["token", "opsToken"], '--header "Authorization: Bearer $OPS_TOKEN" http://localhost:9082/model'),
    ],
)
def test_the_notes_download_the_model_as_the_tokens_require(secrets: list[str], line: str) -> None:
    flags = [f"--set={name}.existingSecret=mine" for name in secrets]
    notes = helm("install", "fl", str(HELM / "coordinator"), "--dry-run=client", *flags)
    assert line in re.findall("^Download the model: .*", notes, re.MULTILINE)[0]


def test_network_policies_allow_silos_only_what_they_need() -> None:
    addresses = ("coordinator.url=https://fl.example.org", "networkPolicy.aggregatorPort=8443", "otel.endpoint=http://c:4318")
    policy = rendered("participant", "networkPolicy.enabled=true", *addresses)["NetworkPolicy", "fl-participant"]["spec"]
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [443, 8443, 4318]]
    assert policy["ingress"] == [{"ports": [{"port": "ops", "protocol": "TCP"}]}]


def test_network_policies_allow_the_coordinator_its_collector() -> None:
    settings = "networkPolicy.enabled=true", "coordinator.settings.otlp_endpoint=http://collector:4319"
    policy = rendered("coordinator", *settings)["NetworkPolicy", "fl-coordinator"]["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["egress"]] == [[53, 53], [4319]]


@pytest.mark.parametrize(
    ("settings", "namespace"),
    [
        ([], None),
        (["otlp_endpoint=http://collector:4318"], "default"),
        (["otlp_endpoint=http://collector:4318", "otlp_namespace=fl"], "fl"),
    ],
)
def test_relayed_metrics_have_the_namespace_of_the_pod_monitor(settings: list[str], namespace: str | None) -> None:
    objects = rendered("coordinator", *(f"coordinator.settings.{setting}" for setting in settings))
    assert objects["ConfigMap", "fl-coordinator"]["data"].get("COORDINATOR_OTLP_NAMESPACE") == namespace


def test_the_ops_ports_are_not_exposed_with_the_public_ports() -> None:
    def ports(*settings: str) -> dict[str, list[str]]:
        services = [found for (kind, _), found in rendered("coordinator", *settings).items() if kind == "Service"]
        return {s["metadata"]["name"]: [p["name"] for p in s["spec"]["ports"]] for s in services if "ports" in s["spec"]}

    assert ports() == {"fl-coordinator": ["http", "ops"], "fl-aggregator": ["http", "ops"]}
    assert ports("service.type=LoadBalancer") == {
        "fl-coordinator": ["http"],
        "fl-coordinator-ops": ["ops"],
        "fl-aggregator": ["http"],
        "fl-aggregator-ops": ["ops"],
    }


@pytest.mark.parametrize("kind", ["ClusterIP", "LoadBalancer"])
def test_a_platform_that_is_not_ready_stays_reachable(kind: str) -> None:
    services = [found for (k, _), found in rendered("coordinator", f"service.type={kind}").items() if k == "Service"]
    assert all(found["spec"]["publishNotReadyAddresses"] for found in services)


@pytest.mark.parametrize("chart", ["coordinator", "participant"])
def test_custom_labels_and_annotations_are_on_every_object_and_in_no_selector(chart: str) -> None:
    yours = 'commonLabels={"team": "silo", "app.kubernetes.io/name": "mine"}', 'commonAnnotations={"ticket": "42"}'
    for (kind, _), found in rendered(chart, *REQUIRED[chart], *yours).items():
        if kind != "Pod":  # of helm test, which is gone as soon as it is done
            assert found["metadata"]["labels"]["team"] == "silo"
            assert found["metadata"]["labels"]["app.kubernetes.io/name"] == chart
            assert found["metadata"]["annotations"] == {"ticket": "42"}
        if kind == "StatefulSet":
            assert set(found["spec"]["selector"]["matchLabels"]) == {
                f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")
            }
            assert found["spec"]["template"]["metadata"]["labels"]["team"] == "silo"


def test_a_changed_setting_replaces_pods_and_a_custom_label_does_not() -> None:
    def template(*settings: str) -> Any:
        objects = rendered("participant", URL, "shards=10", *settings)
        return objects["StatefulSet", "fl-participant"]["spec"]["template"]["metadata"]["annotations"]

    assert template() == template("replicaCount=30") == template("podMonitor.enabled=true")
    assert template() != template("settings.log_level=debug")
    assert template("shards=0") != template("shards=0", "replicaCount=30"), "as many shards as replicas"


def test_topology_spread_selects_the_pods_of_the_chart() -> None:
    spread = 'topologySpreadConstraints=[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]'
    objects = rendered("participant", URL, spread)
    (constraint,) = pod(objects)["topologySpreadConstraints"]
    assert constraint["labelSelector"] == objects["StatefulSet", "fl-participant"]["spec"]["selector"]


def test_the_url_of_runbooks_is_configurable() -> None:
    objects = rendered("coordinator", "prometheusRule.enabled=true", "prometheusRule.runbookBase=https://wiki.example.org/")
    rules = [rule for group in objects["PrometheusRule", "fl-coordinator"]["spec"]["groups"] for rule in group["rules"]]
    links = [rule["annotations"]["runbook_url"] for rule in rules if "alert" in rule]
    assert links
    for link in links:
        assert (ROOT / link.removeprefix("https://wiki.example.org/")).exists()


def test_new_pods_of_a_deployment_stand_by_before_an_old_one_ends() -> None:
    def strategy(*settings: str) -> Any:
        return rendered("participant", URL, "kind=Deployment", *settings)["Deployment", "fl-participant"]["spec"]["strategy"]

    assert strategy() == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    own = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0}}
    assert strategy(f"updateStrategy={json.dumps(own)}") == own
    assert strategy("updateStrategy.type=Recreate") == {"type": "Recreate"}
    assert rendered("participant", URL)["StatefulSet", "fl-participant"]["spec"]["updateStrategy"] == {"type": "RollingUpdate"}


def test_optional_objects_are_off_by_default() -> None:
    assert {kind for kind, _ in rendered("participant", URL)} == {"ServiceAccount", "ConfigMap", "Service", "StatefulSet", "Pod"}
    platform = rendered("coordinator")
    assert {kind for kind, _ in platform} == {"ServiceAccount", "ConfigMap", "Service", "StatefulSet", "Pod"}
    assert {name for kind, name in platform if kind == "Service"} == {"fl-coordinator", "fl-coordinator-pod", "fl-aggregator"}


@pytest.mark.parametrize("drain", [1, 30, 600])
def test_the_grace_period_of_a_pod_is_its_drain_time_out_and_ten_seconds(drain: int) -> None:
    objects = rendered("participant", URL, f"drainSeconds={drain}")
    assert objects["ConfigMap", "fl-participant"]["data"]["PARTICIPANT_DRAIN_TIMEOUT"] == f"{drain}s"
    assert pod(objects)["terminationGracePeriodSeconds"] == drain + 10


def test_the_three_probes_differ_and_the_startup_probe_allows_slow_imports() -> None:
    (container,) = pod(rendered("participant", URL, "startupSeconds=60"))["containers"]
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] == 60
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_with_an_autoscaler_the_chart_sets_no_replicas() -> None:
    values = "shards=10", "autoscaling.enabled=true", "autoscaling.targetMemoryUtilizationPercentage=90"
    objects = rendered("participant", URL, *values)
    assert "replicas" not in objects["StatefulSet", "fl-participant"]["spec"]
    metrics = objects["HorizontalPodAutoscaler", "fl-participant"]["spec"]["metrics"]
    assert [metric["resource"]["name"] for metric in metrics] == ["cpu", "memory"]


def test_every_variable_that_is_set_is_a_setting() -> None:
    known = {row.variable for cls in (ParticipantSettings, CoordinatorSettings, AggregatorSettings) for row in cls.rows()}
    for case in CASES:
        objects = rendered(str(case.parts[0]), values=case)
        names = {name for (kind, _), found in objects.items() if kind == "ConfigMap" for name in found.get("data", {})}
        names |= {variable["name"] for container in pod(objects)["containers"] for variable in container.get("env", [])}
        ours = {name for name in names if name.startswith(("PARTICIPANT_", "COORDINATOR_", "AGGREGATOR_"))}
        assert ours <= known


@pytest.mark.parametrize("chart", ["coordinator", "participant"])
def test_every_value_is_documented_and_used(chart: str) -> None:
    templates = "".join(path.read_text() for path in (ROOT / "helm" / chart / "templates").rglob("*") if path.is_file())
    table = (HELM / "README.md").read_text().split(f"## {chart}\n")[1].split("<!-- end -->")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| (.*) \|$", table, re.MULTILINE)
    paths = [path for path, _ in rows]
    values = yaml.safe_load((HELM / chart / "values.yaml").read_text())
    assert {path.partition(".")[0] for path in paths} == set(values)
    assert [path for path, comment in rows if not comment] == []
    assert [path for path in paths if not re.search(rf"[.\"]{path.rpartition('.')[2]}\b", templates)] == []
