"""Run the code blocks of a page as a reader would: in their order, in a terminal.

A page of `docs` starts in an empty directory, any other page in its own directory of a clone.

A comment above a block defines what the test does with it. A comment may have several of these, separated by commas:

- `<!-- file: NAME -->`: the block is the content of this file.
- `<!-- part of NAME -->`: the file has this text.
- `<!-- background until URL -->`: the last command goes on; the next block runs when the URL answers 200.
- `<!-- new terminal -->`: another shell, in the same directory, without the variables of the first one.
- `<!-- first terminal after Ctrl-C -->`: the first shell again, whose last background command is ended. `after Ctrl-C in each`:
  that of each shell is ended.
- `<!-- exit 69 -->`: the last command ends with this code.
- `<!-- with docker -->`, or another of `NEEDS`: only a session that has this runs it. `tests/container`, `tests/cluster` and
  `tests/examples` have such sessions.
- `<!-- run by tests/x.py::test_y -->`: another test runs it.
- `<!-- not run: REASON -->`

A page that begins where another one ends has the comment `<!-- after NAME.md -->`: the blocks of that page run first.

Without a comment `console` and `sh` blocks run in the shell, `python` blocks in one interpreter; other languages are data. The
lines of a `console` block that are no commands are the output that the commands must write, in this order, with `...` for any
text, or any lines.
"""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.processes import until

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(page for part in ("tutorial", "guides", "reference", "explanation") for page in (ROOT / "docs" / part).glob("*.md")),
]
RUN = ("console", "sh", "python")
"""Languages of the blocks that are run."""
NETWORKED = ("docker", "kubernetes", "the internet")
NEEDS = (*NETWORKED, "scikit-learn", "PyTorch", "Flower")
"""Requirements that only some sessions meet."""
_BLOCK = re.compile(r"(?:^ *<!-- ([^\n]*?) -->\n)?^( *)```(\w+)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
_MARK = "--- the block has ended: "
_INTERPRETER = f"""
import json, sys
names = {{"__name__": "__main__"}}
for line in sys.stdin:
    where, code = json.loads(line)
    exec(compile(code, where, "exec"), names)
    print()
    print({_MARK!r} "0", flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A block of code, and the comment above it."""

    page: Path
    line: int
    language: str
    code: str
    comment: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def said(self, pattern: str) -> str | None:
        """Return what the group of `pattern` matches in the comment; None if it does not match."""
        found = re.search(pattern, self.comment)
        return found and found[1]

    @property
    def needs(self) -> set[str]:
        """The requirements for running it."""
        return {need for need in NEEDS if f"with {need}" in self.comment}

    def runs(self, having: Collection[str] = ()) -> bool:
        """Return whether a session that meets the requirements `having` runs it."""
        return (
            self.language in RUN and not re.match("not run: |run by |file: |part of ", self.comment) and self.needs <= set(having)
        )

    @property
    def commands(self) -> str:
        """The lines for the shell: those after `$ `, and their continuation lines."""
        if self.language != "console":
            return self.code.rstrip()
        return "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", self.code, re.MULTILINE))

    @property
    def output(self) -> list[str]:
        """The lines of a `console` block that are output."""
        return re.sub(r"^\$ (?:.*\\\n)*.*\n", "", self.code, flags=re.MULTILINE).splitlines() if self.language == "console" else []


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, after those of the pages that it continues."""
    text = page.read_text()
    before = re.search("^<!-- after (.*) -->$", text, re.MULTILINE)
    return [*(blocks(page.parent / before[1]) if before else []), *_own(page, text)]


def clone(directory: Path) -> Path:
    """Copy the files of a clone to `fedround` in `directory`."""
    names = (".git", ".venv", ".cache", ".*_cache", ".hypothesis", "build", "dist", "charts", "__pycache__", ".env", ".coverage*")
    return shutil.copytree(ROOT, directory / "fedround", ignore=shutil.ignore_patterns(*names))


def _own(page: Path, text: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(text):
        comment, indent, language, code = match.groups("")
        line = text.count("\n", 0, match.start(4))
        found.append(Block(page, line, language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE), comment))
    return found


class Terminal:
    """A shell or an interpreter that writes to a terminal."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str], name: str) -> None:
        self.name = name
        self._blocks = 0
        self._written = b""
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        termios.tcsetwinsize(slave, (50, 200))
        self._process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=slave, stderr=slave, text=True
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """What the terminal shows, without colours and cursor movements."""
        text = self._written.decode(errors="replace").replace("\r", "\n")
        return re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -Z\\^_`a-z0-9])", "", text)

    def run(self, text: str) -> int:
        """Run a block to its end, and return its exit code."""
        assert self._process.stdin is not None
        self._blocks += 1
        self._process.stdin.write(text)
        self._process.stdin.flush()
        until(lambda: len(self._ended()) == self._blocks or self._process.poll() is not None, within=150)
        ended = self._ended()
        return ended[-1] if len(ended) == self._blocks else self._process.wait()

    def close(self) -> None:
        """Wait for its end, after the namespace has ended."""
        self._process.communicate()
        self._reader.join()
        os.close(self._master)

    def _ended(self) -> list[int]:
        return [int(code) for code in re.findall(rf"^{_MARK}(\d+)$", self.text, re.MULTILINE)]

    def _read(self) -> None:
        with suppress(OSError):  # Linux, after the last writer has closed
            while read := os.read(self._master, 65536):
                self._written += read


def lacks(text: str, lines: list[str]) -> str | None:
    """Return the first of these lines that `text` does not have after the line before; None if it has all."""
    written = iter(text.splitlines())
    for line in lines:
        pattern = ".*".join(map(re.escape, line.strip().split("...")))
        if line.strip() != "..." and not any(re.fullmatch(pattern, found.strip()) for found in written):
            return line
    return None


class Session:
    """The terminals of one page."""

    def __init__(self, inside: list[str], directory: Path, having: Collection[str], variables: Mapping[str, str]) -> None:
        self._inside = inside
        self._directory = directory
        self._having = having
        ours = ("PARTICIPANT_", "COORDINATOR_", "AGGREGATOR_", "FEDROUND_", "OTEL_")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        self._environment |= variables
        self.terminals: list[Terminal] = []
        self._shell = self._terminal("bash", "--norc")
        self._python: Terminal | None = None

    def run(self, block: Block) -> None:
        """Run a block as a reader does. Raises `AssertionError` if it fails."""
        if name := block.said("file: ([^,]*)"):
            (self._directory / name).parent.mkdir(parents=True, exist_ok=True)
            (self._directory / name).write_text(block.code)
        if name := block.said("part of ([^,]*)"):
            assert block.code in (self._directory / name).read_text(), f"{block.where}: {name} has another text"
        if not block.runs(self._having):
            return
        try:
            code = self._interpret(block) if block.language == "python" else self._command(block)
            assert code == int(block.said(r"exit (\d+)") or 0), f"exit code {code}"
        except AssertionError as error:
            raise AssertionError(f"{block.where}: {error}\n{self._log()}") from None

    def _terminal(self, *command: str) -> Terminal:
        name = f"terminal {len(self.terminals) + 1}"
        self.terminals.append(Terminal([*self._inside, *command], self._directory, self._environment, name))
        return self.terminals[-1]

    def _interpret(self, block: Block) -> int:
        self._python = self._python or self._terminal(sys.executable, "-c", _INTERPRETER)
        return self._python.run(json.dumps([block.where, block.code]) + "\n")

    def _command(self, block: Block) -> int:
        if "new terminal" in block.comment:
            self._shell = self._terminal("bash", "--norc")
        if "first terminal after Ctrl-C" in block.comment:
            self._shell = self.terminals[0]
            for terminal in self.terminals if "after Ctrl-C in each" in block.comment else [self._shell]:
                terminal.run(f"kill -INT %% && wait %%\necho; echo '{_MARK}'$?\n")
        shell, begin = self._shell, len(self._shell.text)
        url = block.said(r"background until ([^\s,]+)")
        # A failed command in the middle ends the shell, and with it the test.
        strict = "+" if "exit " in block.comment else "-"
        # A background command has a process group, to which Ctrl-C sends SIGINT.
        commands = f"set -m\n{block.commands} < /dev/null &\nset +m" if url else block.commands
        code = shell.run(f"set {strict}e\n{commands}\nstatus=$?; echo; echo '{_MARK}'$status\nset +e\n")
        if url:
            until(lambda: self._answers(url), within=60)
        missing = lacks(shell.text[begin:], block.output)
        assert missing is None, f"the output lacks {missing!r}"
        return code

    def _answers(self, url: str) -> bool:
        asked = [*self._inside, sys.executable, "-c", f"import urllib.request as r; r.urlopen({url!r}, timeout=2)"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _log(self) -> str:
        return "".join(f"== {terminal.name}\n{terminal.text}" for terminal in self.terminals)


@contextmanager
def session(
    page: Path,
    directory: Path,
    having: Collection[str] = (),
    variables: Mapping[str, str] | None = None,
    environment: Path = Path(sys.prefix),
) -> Iterator[Session]:
    """A session for a page, with these of `NEEDS`, these variables and this virtual environment.

    Without those of `NETWORKED` it has its own network, in which all ports are free and no other machine can be reached.
    """
    unshare = shutil.which("unshare")
    networked = bool(set(NETWORKED) & set(having))
    spaces = ["--user", "--pid"] if networked else ["--user", "--pid", "--net"]
    alone = [str(unshare), "--map-root-user", *spaces, "--fork", "--kill-child", "--mount-proc"]
    if unshare is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("unshare cannot make a network of its own")
    reader = directory / "reader"
    reader.mkdir()
    begin = reader
    if not page.is_relative_to(ROOT / "docs"):
        begin = clone(reader) / page.parent.relative_to(ROOT)
    elif networked:
        clone(reader)
    if begin == reader / "fedround":
        (begin / ".venv").symlink_to(environment)  # of `make`
    elif "the internet" not in having:  # otherwise the reader makes it
        (begin / ("venv" if begin == reader else ".venv")).symlink_to(environment)
    ready = f"{'' if networked else 'ip link set lo up && '}echo up && exec sleep infinity"
    with subprocess.Popen([*alone, "sh", "-c", ready], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        (child,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        inside = ["nsenter", "--target", child, "--preserve-credentials", *spaces]
        made = Session(inside, begin, having, variables or {})
        try:
            yield made
        finally:
            holder.kill()
            for terminal in made.terminals:
                terminal.close()
