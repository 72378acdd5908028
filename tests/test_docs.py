"""The documentation agrees with the code."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from chaos.measure import ATTACKS, faults, rows

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")])


def test_the_reference_of_settings_and_exit_codes_is_up_to_date() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "docs.py", "--check"], check=True)


def test_the_readme_fits_on_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_are_valid(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tests_named_in_the_threat_model_exist() -> None:
    text = (ROOT / "docs" / "explanation" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []
    for line in re.findall(r"^\| .*prevented by.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        assert all("::test_" in row for row in line.splitlines()), "each attack has its test"


def test_every_fault_has_its_row_and_its_measurements() -> None:
    page = (ROOT / "docs" / "explanation" / "faults.md").read_text()
    assert sorted(rows(page)) == sorted(faults())


def test_metrics_in_the_table_of_faults_are_in_the_reference() -> None:
    named = re.findall(
        r"^\|.*\| `(\w+)[^|]*` \|[^|]*\|[^|]*\|[^|]*\|$", (ROOT / "docs/explanation/faults.md").read_text(), re.MULTILINE
    )
    reference = re.findall(r"^\| `(\w+)` \| \w+ \|", (ROOT / "docs" / "reference" / "metrics.md").read_text(), re.MULTILINE)
    assert len(named) == len(faults())
    assert set(named) <= set(reference)


def test_every_described_attack_has_a_test() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests" / "hostile").glob("test_*.py"))
    assert [name for name in ATTACKS if f"def test_{name}(" not in tests] == []


# Questions


QUESTIONS: dict[str, str] = tomllib.loads((ROOT / "tools" / "questions.toml").read_text())
DOCS = ROOT / "docs"
FIRST_SCREEN = 40
"""Number of lines of a page that a reader sees without scrolling."""


def toctrees(page: Path) -> set[Path]:
    """Return the pages in the toctrees of a page."""
    found = set()
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for entry in tree.split("\n"):
            if entry and not entry.startswith(":"):
                found |= set(page.parent.glob(f"{entry}.md"))
    return found


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_answered_two_clicks_from_the_front_page(question: str) -> None:
    name, _, anchor = QUESTIONS[question].partition("#")
    page = DOCS / name
    sections = toctrees(DOCS / "index.md")
    assert page in {found for section in sections for found in toctrees(section)}
    text = re.sub(r"^(`{3,}).*?^\1$", lambda block: "\n" * block[0].count("\n"), page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = text.splitlines()
    (at,) = (k for k, line in enumerate(lines) if line.startswith("#") and slug(line.lstrip("#")) == anchor)
    below = next(line for line in page.read_text().splitlines()[at + 1 :] if line)
    assert not below.startswith("#"), "the heading has an answer below it"
    assert at < FIRST_SCREEN or lines[at].startswith("## "), "the answer is on the first screen, or in the page's contents"


def test_every_page_belongs_to_a_section() -> None:
    assert list(DOCS.glob("*.md")) == [DOCS / "index.md"]
    sections = toctrees(DOCS / "index.md")
    listed = [page for section in sections for page in toctrees(section) - {section}]
    assert sorted(listed) == sorted(set(DOCS.glob("*/*.md")) - sections), "each page is in one toctree"
