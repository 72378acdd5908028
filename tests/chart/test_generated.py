"""Files that are generated from the charts, and the overlays without Helm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.tools import tool
from support.venvs import ROOT


def test_generated_files_are_up_to_date() -> None:
    tool("helm")
    done = subprocess.run([sys.executable, "tools/charts.py", "--check"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def kustomized(path: Path) -> list[Any]:
    done = subprocess.run([tool("kubectl"), "kustomize", str(path)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("overlay", ["demo", "production"])
def test_every_overlay_has_a_restricted_namespace(overlay: str) -> None:
    objects = kustomized(ROOT / "k8s" / "overlays" / overlay)
    (namespace,) = [found for found in objects if found["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {found["metadata"].get("namespace") for found in objects if found is not namespace} == {"fedround"}


def test_without_helm_a_changed_setting_replaces_pods_too(tmp_path: Path) -> None:
    def variables(*literals: str) -> dict[str, list[str]]:
        generated = [{"name": "silo-participant", "behavior": "merge", "literals": list(literals)}] if literals else []
        overlay = {"resources": [os.path.relpath(ROOT / "k8s" / "base", tmp_path)], "configMapGenerator": generated}
        (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay))
        workloads = (found for found in kustomized(tmp_path) if found["kind"] == "StatefulSet")
        return {
            found["metadata"]["name"]: [
                c["envFrom"][0]["configMapRef"]["name"] for c in found["spec"]["template"]["spec"]["containers"]
            ]
            for found in workloads
        }

    before, after = variables(), variables("PARTICIPANT_LOG_LEVEL=debug")
    assert before["fl-coordinator"] == after["fl-coordinator"]
    assert before["silo-participant"] != after["silo-participant"]
