"""Each block of code in the documentation does what the page describes."""

import re
from pathlib import Path

import pytest

from support.pages import PAGES, ROOT, Block, blocks, lacks, session

RUN = [page for page in PAGES if any(block.page == page and block.runs() for block in blocks(page))]
ELSEWHERE = [block for page in PAGES for block in blocks(page) if block.comment.startswith("run by ")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    with session(page, tmp_path) as reader:
        for block in blocks(page):
            reader.run(block)


@pytest.mark.parametrize("block", ELSEWHERE, ids=lambda block: block.where)
def test_blocks_that_other_tests_run_name_existing_tests(block: Block) -> None:
    found = re.fullmatch(r"run by (tests/[\w/]+\.py)::(\w+)", block.comment)
    assert found is not None
    assert f"def {found[2]}(" in (ROOT / found[1]).read_text()


@pytest.mark.parametrize(
    ("written", "missing"),
    [
        (["round 3", "ready"], None),
        (["...", "round ...", "...", "ready"], None),
        (["ready", "round 3"], "round 3"),
        (["round"], "round"),
        (["round 3", "round 3"], "round 3"),
        (["ro.nd 3"], "ro.nd 3"),
    ],
)
def test_output_must_have_the_lines_of_the_page_in_their_order(written: list[str], missing: str | None) -> None:
    assert lacks("begin\nround 3\n  indented\n\nready\n", written) == missing
