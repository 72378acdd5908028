"""The rules: Prometheus loads them, every alert fires when it should and only then, and has a runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.dashboards import ALERTS, ROOT, RULES_TEXT, RUNBOOKS
from support.prometheus import DEPLOY, RULES
from support.tools import tool

CASES = DEPLOY / "prometheus" / "tests" / "alerts.yml"
PAGE = (ROOT / "docs" / "guides" / "alerts.md").read_text()
TABLE = re.findall(r"^\| `(\w+)`[^|]*\| [^|]+ \| [\d-]+ min \|$", PAGE, re.MULTILINE)
"""The alerts in the documentation."""
BLOCKS = re.findall(r"- alert: (\w+)\n(.*?)(?=\n\n|\Z)", RULES_TEXT, re.DOTALL)


def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run([tool("promtool"), "check", "rules", *RULES], capture_output=True, text=True, check=False)
    assert (done.returncode, "FAILED" in done.stdout) == (0, False), done.stderr


def test_promtool_accepts_the_scrape_configurations_of_the_guide(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "guides" / "monitoring.md").read_text(), re.DOTALL)
    assert block is not None
    config = tmp_path / "prometheus.yml"
    config.write_text(block[1])
    shutil.copytree(DEPLOY / "prometheus" / "rules", tmp_path / "rules")
    done = subprocess.run([tool("promtool"), "check", "config", config], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("rules found")) == (0, len(RULES)), done.stdout + done.stderr


@pytest.mark.timeout(300)  # hours of rules in 40 s, on a core to itself
def test_each_alert_fires_only_when_it_should() -> None:
    done = subprocess.run([tool("promtool"), "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_cases_before_during_and_after(alert: str) -> None:
    asked = re.findall(rf'expr: \'?ALERTS{{alertname="{alert}"[^\n]*?(exp_samples: \[\])?(?:}}\n|\n)', CASES.read_text())
    assert asked.count("exp_samples: []") >= 2
    assert "" in asked


def test_each_alert_is_documented_and_has_a_runbook() -> None:
    assert sorted(set(TABLE)) == ALERTS == sorted(RUNBOOKS)
    assert sorted(re.findall(r"\| \[(\w+)\]\(\1\.md\)", (ROOT / "docs" / "runbooks" / "README.md").read_text())) == ALERTS


@pytest.mark.parametrize("alert", ALERTS)
def test_every_runbook_has_impact_diagnosis_and_fix(alert: str) -> None:
    assert re.findall(r"^##? (.*)", RUNBOOKS[alert], re.MULTILINE) == [alert, "Impact", "Diagnosis", "Fix"]


@pytest.mark.parametrize(("alert", "rule"), BLOCKS)
def test_every_alert_has_summary_severity_and_runbook(alert: str, rule: str) -> None:
    assert re.search(r"severity: (critical|warning)\b", rule)
    for field in ("for", "summary", "description"):
        assert re.search(rf"\b{field}: .", rule), field
    assert (ROOT / re.findall(r"runbook_url: (.*)", rule)[0]).stem == alert


def test_the_runbook_of_never_selected_lists_the_counted_participants() -> None:
    """Both have the same query. With another window it would list other participants."""
    query = re.findall(r"```promql\n(.*?)```", RUNBOOKS["NeverSelected"], re.DOTALL)[0]
    (rule,) = [rule for alert, rule in BLOCKS if alert == "NeverSelected"]
    assert " ".join(query.split()) in " ".join(rule.split())


def test_alertmanager_accepts_the_example() -> None:
    config = DEPLOY / "alertmanager" / "alertmanager.yml"
    done = subprocess.run([tool("amtool"), "check-config", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+\b", config.read_text())) <= set(ALERTS)
