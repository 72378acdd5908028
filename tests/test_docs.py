"""The documentation says what is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.measure import faults, rows

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")])


def test_the_page_of_settings_and_exit_codes_is_what_the_code_says() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "docs.py", "--check"], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_each_test_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs" / "explanation" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    missing = [
        f"{path}::{name}" for path, name in named if not re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []
    for line in re.findall(r"^\| .*prevented by.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        assert all("::test_" in row for row in line.splitlines()), "each attack has its test"


def test_each_fault_that_is_tried_has_its_row_and_its_figures() -> None:
    page = (ROOT / "docs" / "explanation" / "faults.md").read_text()
    assert sorted(rows(page)) == sorted(faults())
