"""The command line: `fedround COMMAND`. Only the command line reads the environment, configures logging and chooses exit codes.

A command's own code is imported when that command is chosen: `fedround --help` and the probes load neither NumPy nor a web server.
"""

import difflib
import logging
import os
import signal
import sys
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Never

from fedround.commands import clients, services
from fedround.commands.exits import MEANINGS, Arguments, Exit, Run
from fedround.errors import ConfigurationError, FedroundError, ParticipantError

__all__ = ["COMMANDS", "MEANINGS", "Exit", "main"]

LOG = logging.getLogger("fedround")


class _Parser(ArgumentParser):
    def __init__(self, **options: Any) -> None:
        # "resolve": with `platform`, both services have the setting of the shared secret.
        formatter = partial(HelpFormatter, max_help_position=32)
        super().__init__(**options, allow_abbrev=False, conflict_handler="resolve", formatter_class=formatter)

    def error(self, message: str) -> Never:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")

    def unknown(self, arguments: Sequence[str]) -> Never:
        """Exit, and suggest a word with another spelling, or a flag of `platform` that lacks the service's name."""
        word = arguments[0].partition("=")[0]
        commands = list(COMMANDS) if self._subparsers else []
        known = [flag for action in self._actions for flag in action.option_strings] if word.startswith("-") else commands
        meant = [flag for flag in known if word.startswith("--") and flag.endswith(word[1:])]
        meant = meant or difflib.get_close_matches(word, known, n=1)
        kind = "option" if word.startswith("-") else "command" if self._subparsers else "argument"
        self.error(f"unknown {kind} {word}: " + (f"did you mean {' or '.join(meant)}?" if meant else "--help lists all"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit code."""
    if argv is None:
        argv = sys.argv[1:]
        _open_closed_streams()
        if SERVICES.intersection(argv[:1]):
            # The service handles signals only after its imports. Process 1 of a container has no default handlers.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
    try:
        code = _main(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        if SERVICES.intersection(argv[:1]) and "--show-settings" not in argv:
            raise
        # A reader such as `head` has closed the pipe. Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    return code


def _open_closed_streams() -> None:
    """Open those of stdin, stdout and stderr that are closed. Otherwise a socket gets the descriptor, and text that is printed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= max(STREAMS):  # the lowest that is free
        os.set_inheritable(fd, True)
        setattr(sys, STREAMS[fd], os.fdopen(fd, "r" if fd == 0 else "w"))
    os.close(fd)


def _main(argv: Sequence[str]) -> int:
    usage = "fedround COMMAND [options]"
    parser = _Parser(prog="fedround", usage=usage, description="Federated learning as a cloud-native service.")
    parser.epilog = "`fedround COMMAND --help` shows the options of a command."
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND [options]", prog="fedround")
    run: Run | None = None
    chosen = parser
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        subparser = commands.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:
            run, chosen = command(subparser), subparser
    if run is None and argv and not argv[0].startswith("-"):
        parser.unknown(argv)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen.unknown(unknown)
    arguments = vars(known)
    if arguments["version"]:
        from importlib.metadata import version

        print(f"fedround {version('fedround')}")
        return Exit.OK
    if run is None:
        parser.error("no command: `fedround --help` lists them")
    try:
        return run(arguments)
    except FedroundError as error:
        trace: Mapping[str, Any] = {}
        if isinstance(error, ParticipantError):
            from fedround.participant import traces

            trace = traces.logged(error)
        *above, last = str(error).splitlines() if isinstance(error, ConfigurationError) else [str(error)]
        for line in above:  # one log line for each invalid setting
            LOG.error("%s", line)
        LOG.error("%s", last, **trace)
        return error.exit_code


def _new(parser: ArgumentParser) -> Run:
    """Write a project with a participant, its test, image, compose file and Helm values."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory to write; its name becomes the project's name")
    library = parser.add_mutually_exclusive_group()
    for name, title in (("torch", "PyTorch"), ("keras", "Keras"), ("sklearn", "scikit-learn")):
        text = f"train with {title} in place of plain NumPy"
        library.add_argument(f"--{name}", dest="library", action="store_const", const=name, default="numpy", help=text)

    def run(arguments: Arguments) -> int:
        from fedround import project

        print(project.create(arguments["directory"], arguments["library"]))
        return Exit.OK

    return run


def _demo(parser: ArgumentParser) -> Run:
    """Train with a whole federation on this machine, and show its progress."""
    from fedround import demo

    demo.add_arguments(parser)
    return demo.run


def _tutorial(parser: ArgumentParser) -> Run:
    """Run the participant of the XAIN FL tutorial."""
    from fedround.participant import tutorial

    tutorial.add_arguments(parser)
    return tutorial.run


COMMANDS: Mapping[str, Callable[[ArgumentParser], Run]] = {
    "participant": services.participant,
    "coordinator": services.coordinator,
    "aggregator": services.aggregator,
    "platform": services.platform,
    "new": _new,
    "demo": _demo,
    "tutorial": _tutorial,
    "model": clients.model,
    "rollback": clients.rollback,
    "runs": clients.runs,
    "history": clients.history,
    "status": clients.status,
    "healthcheck": clients.healthcheck,
}
"""Functions that add the arguments of a command to its parser, and return the function that runs it.

The first line of the docstring is the help of the command.
"""
STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}
"""The names of the standard streams in `sys`, by descriptor."""
SERVICES = frozenset({"participant", "coordinator", "aggregator", "platform"})
"""The commands that run until SIGTERM."""


def _end(_number: int, _frame: FrameType | None) -> Never:
    sys.exit(Exit.OK)
