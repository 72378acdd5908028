"""`promql-parser` as a second check of our queries, in its own environment."""

import json
import subprocess
from collections.abc import Iterable

from support.venvs import python

PARSER = "promql-parser==0.12.0"
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


def metrics(queries: Iterable[str]) -> list[list[str] | str]:
    """Return the metrics of each query, or as text why the query is invalid."""
    done = subprocess.run(
        [python(PARSER), "-c", PROGRAM], input=json.dumps(list(queries)), capture_output=True, text=True, check=True
    )
    found: list[list[str] | str] = json.loads(done.stdout)
    return found
