"""The pages of the documentation that need a cluster run as they are written.

The cluster has the images fedround:0.1.0 and my-silo:0.1, which docs/tutorial/replicas.md builds.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster import namespace
from support.pages import PAGES, ROOT, blocks, session


@pytest.fixture
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of the session, whose commands use a namespace of their own."""
    config = tmp_path_factory.mktemp("kubectl") / "config"
    with namespace("fedround-pages") as made:
        config.touch(0o600)
        config.write_text(made.kubectl("config", "view", "--raw", "--flatten"))
        made.kubectl("config", "set-context", "--current", "--kubeconfig", str(config), f"--namespace={made.name}")
        yield {"KUBECONFIG": str(config)}
    made.kubectl("wait", "--for=delete", f"namespace/{made.name}", "--timeout=120s")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any("kubernetes" in block.needs for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_of_a_page_run(page: Path, variables: dict[str, str], tmp_path: Path) -> None:
    with session(page, tmp_path, ["kubernetes"], variables) as reader:
        for block in blocks(page):
            reader.run(block)
