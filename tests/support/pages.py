"""Runs the code blocks of a page as a reader would: in their order, in an empty directory, on a machine without a network.

A comment above a block says what the test does with it:

- `<!-- file: NAME -->`: the block is the content of this file.
- `<!-- background until URL -->`: the last command goes on; the next block runs when the URL answers 200.
- `<!-- new terminal -->`: another shell, in the same directory, without the variables of the first one.
- `<!-- first terminal after Ctrl-C -->`: the first shell again, whose last background command is ended.
- `<!-- exit 69 -->`: the last command ends with this code.
- `<!-- run by tests/x.py::test_y -->`: another test runs it.
- `<!-- not run: REASON -->`

Without a comment `console` and `sh` blocks run in the shell, `python` blocks in one interpreter; other languages are data.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.processes import until

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(page for part in ("tutorial", "guides", "reference", "explanation") for page in (ROOT / "docs" / part).glob("*.md"))
RUN = ("console", "sh", "python")
"""Languages that are run."""
_BLOCK = re.compile(r"(?:^ *<!-- ([^\n]*?) -->\n)?^( *)```(\w+)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
_MARK = "--- the block has ended: "
_INTERPRETER = f"""
import json, sys
names = {{"__name__": "__main__"}}
for line in sys.stdin:
    where, code = json.loads(line)
    exec(compile(code, where, "exec"), names)
    print({_MARK!r} "0", flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A block of code, and what the comment above it says."""

    page: Path
    line: int
    language: str
    code: str
    comment: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def said(self, pattern: str) -> str | None:
        """What the comment has in the group of `pattern`; None if it has no such text."""
        found = re.search(pattern, self.comment)
        return found and found[1]

    @property
    def runs(self) -> bool:
        """Whether a session runs it."""
        return self.language in RUN and not re.match("not run: |run by |file: ", self.comment)

    @property
    def commands(self) -> str:
        """The shell's lines: those behind `$ `, and the lines that continue them."""
        if self.language != "console":
            return self.code.rstrip()
        return "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.code, re.MULTILINE))


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        comment, indent, language, code = match.groups("")
        line = text.count("\n", 0, match.start(4))
        found.append(Block(page, line, language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE), comment))
    return found


class Terminal:
    """A shell, or an interpreter."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._blocks = 0
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True
            )

    def run(self, text: str) -> int:
        """Run a block to its end, and return its exit code."""
        assert self._process.stdin is not None
        self._blocks += 1
        self._process.stdin.write(text)
        self._process.stdin.flush()
        until(lambda: len(self._ended()) == self._blocks or self._process.poll() is not None, within=120)
        ended = self._ended()
        return ended[-1] if len(ended) == self._blocks else self._process.wait()

    def close(self) -> None:
        """Wait for its end, once the namespace has ended."""
        self._process.communicate()

    def _ended(self) -> list[int]:
        return [int(code) for code in re.findall(rf"^{_MARK}(\d+)$", self.log.read_text(), re.MULTILINE)]


class Session:
    """The terminals of one page."""

    def __init__(self, inside: list[str], directory: Path, logs: Path) -> None:
        self._inside = inside
        self._directory = directory
        self._logs = logs
        ours = ("PARTICIPANT_", "COORDINATOR_", "AGGREGATOR_", "FEDROUND_", "OTEL_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        self.terminals: list[Terminal] = []
        self._shell = self._terminal("bash", "--norc")
        self._python: Terminal | None = None

    def run(self, block: Block) -> None:
        """Do what a reader does with a block. Raises `AssertionError` if it fails."""
        if name := block.said("file: (.*)"):
            (self._directory / name).parent.mkdir(parents=True, exist_ok=True)
            (self._directory / name).write_text(block.code)
        if not block.runs:
            return
        code = self._interpret(block) if block.language == "python" else self._command(block)
        assert code == int(block.said(r"exit (\d+)") or 0), f"{block.where}: exit code {code}\n{self._log()}"

    def _terminal(self, *command: str) -> Terminal:
        log = self._logs / f"terminal-{len(self.terminals) + 1}.log"
        self.terminals.append(Terminal([*self._inside, *command], self._directory, self._environment, log))
        return self.terminals[-1]

    def _interpret(self, block: Block) -> int:
        self._python = self._python or self._terminal(sys.executable, "-c", _INTERPRETER)
        return self._python.run(json.dumps([block.where, block.code]) + "\n")

    def _command(self, block: Block) -> int:
        if "new terminal" in block.comment:
            self._shell = self._terminal("bash", "--norc")
        if "first terminal after Ctrl-C" in block.comment:
            self._shell = self.terminals[0]
            self._shell.run(f"kill %%; wait %%\necho '{_MARK}'$?\n")
        url = block.said(r"background until (\S+)")
        # A failed command in the middle ends the shell, and so the test.
        strict = "+" if "exit " in block.comment else "-"
        code = self._shell.run(f"set {strict}e\n{block.commands}{' &' if url else ''}\necho '{_MARK}'$?\nset +e\n")
        if url:
            until(lambda: self._answers(url), within=60)
        return code

    def _answers(self, url: str) -> bool:
        asked = [*self._inside, sys.executable, "-c", f"import urllib.request as r; r.urlopen({url!r}, timeout=2)"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _log(self) -> str:
        return "".join(f"== {terminal.log.name}\n{terminal.log.read_text()}" for terminal in self.terminals)


@contextmanager
def session(directory: Path) -> Iterator[Session]:
    """A session in a network of its own: all ports are free there, and nothing beyond it can be reached."""
    unshare = shutil.which("unshare")
    alone = [str(unshare), "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if unshare is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("unshare cannot make a network of its own")
    for part in ("reader", "logs"):
        (directory / part).mkdir()
    ready = "ip link set lo up && echo up && exec sleep infinity"
    with subprocess.Popen([*alone, "sh", "-c", ready], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        (child,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        inside = ["nsenter", "--target", child, "--user", "--preserve-credentials", "--net", "--pid"]
        reader = Session(inside, directory / "reader", directory / "logs")
        try:
            yield reader
        finally:
            holder.kill()
            for terminal in reader.terminals:
                terminal.close()
