"""The settings of the documentation site: `make docs`."""

import re
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

LOG = getLogger(__name__)

project = "fedround"
author = "the fedround authors"
project_copyright = "the fedround authors"
version = release = installed("fedround")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other projects, whose inventories a build without a network cannot fetch

html_theme = "furo"
html_title = "fedround"
html_static_path: list[str] = []
html_show_sourcelink = False
exclude_patterns = ["images"]
default_role = "literal"  # `name` in a docstring is code
suppress_warnings = ["misc.highlighting_failure"]  # the lexer of PromQL knows no recording rules

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_mock_imports = ["flwr", "keras", "sklearn", "torch"]  # optional libraries
autodoc_default_options = {"members": True, "show-inheritance": True}


def name_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Name files of the repository that are not part of the site, where a page links to them."""
    here = (Path(app.srcdir) / page).parent

    def replaced(link: re.Match[str]) -> str:
        text, target = link.groups()
        file = (here / target.partition("#")[0]).resolve()
        inside = file.is_relative_to(app.srcdir) or not file.exists()
        return link[0] if inside else f"{text} (`{file.relative_to(Path(app.srcdir).parent)}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)", replaced, source[0])


def keep_sentences(app: Sphinx) -> None:
    """Undo what Napoleon does to a sentence with a colon: it takes the part before the colon for a type."""
    written: dict[str, list[str]] = {}

    def before(_: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        written[name] = lines[:]

    def after(_: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
        if what in ("attribute", "property"):
            lines[:] = written[name]
        if any(line.startswith(":rtype:") for line in lines):
            LOG.warning("%s: write the first line of Returns without a colon", name)

    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", name_files)
    keep_sentences(app)
