"""Files that are made from something else: a tool writes them, with `--check` it says which are old."""

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(files: Iterable[tuple[Path, str]]) -> int:
    """Each file with what belongs into it; 1 where one was to be checked and is old."""
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
