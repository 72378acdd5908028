"""The pages of the documentation that need a Docker Engine or a package index work as written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.docker import built, docker, watchers
from support.pages import PAGES, ROOT, blocks, session
from support.tools import tool

HAVING = ("docker", "the internet")
PROJECT = "fedround-pages"
NETWORKED = [page for page in PAGES if any(block.page == page and block.needs & set(HAVING) for block in blocks(page))]
CONTINUED = {block.page for page in NETWORKED for block in blocks(page) if block.page != page}
"""Pages that run as the beginning of another page."""


@pytest.fixture
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of the session. At the end, remove everything that Compose has left."""
    tool("docker")
    built()
    yield {"COMPOSE_PROJECT_NAME": PROJECT, "DOCKER_BUILDKIT": "0", **watchers(tmp_path_factory.mktemp("watchers"))}
    docker("compose", "--project-name", PROJECT, "down", "--volumes", "--timeout", "2")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in NETWORKED if page not in CONTINUED], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_commands_of_a_page_run(page: Path, variables: dict[str, str], tmp_path: Path) -> None:
    with session(page, tmp_path, HAVING, variables) as reader:
        for block in blocks(page):
            reader.run(block)
