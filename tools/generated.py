"""Generated files: a tool writes them, or with `--check` lists those that are out of date."""

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(files: Iterable[tuple[Path, str]]) -> int:
    """Write or check each file. Return 1 if a checked file is out of date."""
    check = "--check" in sys.argv
    old = False
    for path, text in files:
        if path.exists() and path.read_text() == text:
            continue
        if check:
            print(f"{path.relative_to(ROOT)} is old: run tools/{Path(sys.argv[0]).name}", file=sys.stderr)
            old = True
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return int(old)
