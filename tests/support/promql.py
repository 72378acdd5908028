"""`promql-parser`, a second opinion on our queries, in an environment of its own."""

import json
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

PARSER = "promql-parser==0.12.0"
CACHE = Path(__file__).parent.parent.parent / ".cache"
PROGRAM = r"""
import json, sys
import promql_parser

def names(query):
    found = set()
    def look(node):
        for part in [node] if isinstance(node, promql_parser.VectorSelector) else [getattr(node, "vector_selector", None)]:
            if part is not None and part.name:
                found.add(part.name)
        return True
    tree = promql_parser.parse(query)
    promql_parser.walk(tree, look)
    return sorted(found)

def told(query):
    try:
        return names(query)
    except Exception as error:
        return str(error)

json.dump([told(query) for query in json.load(sys.stdin)], sys.stdout)
"""


class NotInstalled(Exception):
    """The environment cannot be made."""


def metrics(queries: Iterable[str]) -> list[list[str] | str]:
    """The metrics that each query asks for, or, as text, why it is none."""
    done = subprocess.run([_python(), "-c", PROGRAM], input=json.dumps(list(queries)), capture_output=True, text=True, check=True)
    found: list[list[str] | str] = json.loads(done.stdout)
    return found


def _python() -> str:
    directory = CACHE / f"{PARSER.replace('==', '-')}-python-{sys.version_info[0]}.{sys.version_info[1]}"
    executable = str(directory / "bin" / "python")
    if not (directory / "ready").exists():
        venv.create(directory, with_pip=True, clear=True)
        install = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PARSER]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled(f"{PARSER} cannot be installed: {done.stderr[-300:]}")
        (directory / "ready").touch()
    return executable
