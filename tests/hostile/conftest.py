"""Arenas: one for all attacks of a file that leave it unchanged."""

from collections.abc import Iterator

import pytest

from hostile.arena import Arena


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A platform without tokens, and three honest participants."""
    with Arena(tmp_path_factory.mktemp("arena")) as arena:
        yield arena
