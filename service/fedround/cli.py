"""The command line: `fedround COMMAND`. It alone reads the environment, configures logging and chooses exit codes.

A command's own code is imported when that command is chosen: `fedround --help` and the probes load neither numpy nor a web server.
"""

import logging
import os
import sys
import urllib.error
import urllib.request
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, TypeVar

from fedround.errors import (
    ConfigurationError,
    CoordinatorUnreachable,
    FedroundError,
    ParticipantError,
)

if TYPE_CHECKING:
    from fedround.settings import Settings

    S = TypeVar("S", bound=Settings)

LOG = logging.getLogger("fedround")

Arguments = Mapping[str, Any]
Run = Callable[[Arguments], int]
"""Runs a command; returns the exit code."""


class Exit(IntEnum):
    """Exit codes, the numbers of <sysexits.h>: one meaning each."""

    OK = 0
    FAILED = 1
    USAGE = 64
    UNREACHABLE = 69
    USER_CODE = 70
    CONFIGURATION = 78


MEANINGS = {
    Exit.OK: "It did what it was told to do: training is complete, or it was asked to stop and has stopped.",
    Exit.FAILED: "`model`, `status`, `healthcheck`, `demo`: no answer, or not the answer that was hoped for.",
    Exit.USAGE: "The command line is wrong.",
    Exit.UNREACHABLE: "The coordinator was unreachable for longer than `PARTICIPANT_GIVE_UP_AFTER`.",
    Exit.USER_CODE: "The participant's own code failed, `PARTICIPANT_MAX_FAILURES` times in a row; the log has its traceback.",
    Exit.CONFIGURATION: "A setting is missing or wrong, or a port is in use; the message names every setting that is not right.",
}

_EXITS: dict[type[FedroundError], Exit] = {
    ConfigurationError: Exit.CONFIGURATION,
    CoordinatorUnreachable: Exit.UNREACHABLE,
    ParticipantError: Exit.USER_CODE,
}


class _Help(HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class _Parser(ArgumentParser):
    def __init__(self, **options: Any) -> None:
        # "resolve": `platform` meets the shared secret in both services' settings.
        super().__init__(**options, allow_abbrev=False, conflict_handler="resolve", formatter_class=_Help)

    def error(self, message: str) -> Never:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _Parser(prog="fedround", description="Federated learning as a cloud-native service.")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run: Run | None = None
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        subparser = commands.add_parser(name, help=summary, description=summary)
        if argv[:1] == [name]:
            run = command(subparser)
    arguments = vars(parser.parse_args(argv))
    if arguments["version"]:
        print(f"fedround {version('fedround')}")
        return Exit.OK
    if run is None:
        parser.error("which command? `fedround --help` lists them")
    try:
        return run(arguments)
    except FedroundError as error:
        cause = (error.__cause__ or error) if isinstance(error, ParticipantError) else None
        LOG.error("%s", error, exc_info=cause)
        return exit_code(error)


def exit_code(error: FedroundError) -> Exit:
    """What a process that `error` ends says to those who started it."""
    return next((code for kind, code in _EXITS.items() if isinstance(error, kind)), Exit.FAILED)


def _participant(parser: ArgumentParser) -> Run:
    """Join a coordinator and train when selected, until training is complete."""
    from fedround.settings import ParticipantSettings

    load = _settings(parser, ParticipantSettings)

    def run(arguments: Arguments) -> int:
        settings = load(arguments)
        from fedround.participant.service import serve_participant

        return serve_participant(settings)

    return run


def _coordinator(parser: ArgumentParser) -> Run:
    """Serve a coordinator."""
    from fedround.settings import CoordinatorSettings

    load = _settings(parser, CoordinatorSettings, file=True)

    def run(arguments: Arguments) -> int:
        settings = load(arguments)
        from fedround.coordinator import app

        app.run(settings)
        return Exit.OK

    return run


def _aggregator(parser: ArgumentParser) -> Run:
    """Serve an aggregator."""
    from fedround.settings import AggregatorSettings

    load = _settings(parser, AggregatorSettings, file=True)

    def run(arguments: Arguments) -> int:
        settings = load(arguments)
        from fedround.aggregator import app

        app.run(settings)
        return Exit.OK

    return run


def _platform(parser: ArgumentParser) -> Run:
    """Serve a coordinator and an aggregator in one process."""
    from fedround.settings import AggregatorSettings, CoordinatorSettings

    load_aggregator = _settings(parser, AggregatorSettings, long=True)
    load_coordinator = _settings(parser, CoordinatorSettings, long=True)

    def run(arguments: Arguments) -> int:
        problems = []
        try:
            aggregator = load_aggregator(arguments)
        except ConfigurationError as error:
            problems.append(str(error))
        try:
            coordinator = load_coordinator(arguments)
        except ConfigurationError as error:
            problems.append(str(error))
        if problems:
            raise ConfigurationError("\n".join(problems))
        from fedround import platform

        platform.run(coordinator, aggregator)
        return Exit.OK

    return run


def _demo(parser: ArgumentParser) -> Run:
    """Watch a whole federation train on this machine."""
    from fedround import demo

    demo.add_arguments(parser)
    return demo.run


def _model(parser: ArgumentParser) -> Run:
    """Fetch the newest global model."""
    parser.add_argument("--from", dest="url", required=True, metavar="URL", help="the aggregator's ops port")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .npy file to write")
    parser.add_argument("--token", help="the aggregator's token")

    def run(arguments: Arguments) -> int:
        from fedround.http import fetch_model

        output: Path = arguments["output"]
        model, number = fetch_model(arguments["url"], token=arguments["token"])
        partial = output.with_name(f".{output.name}.part")
        try:
            partial.write_bytes(model)
            partial.replace(output)
        except OSError as error:
            raise FedroundError(f"the model cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        print(f"{output}: the global model after round {number}, {len(model)} bytes")
        return Exit.OK

    return run


def _status(parser: ArgumentParser) -> Run:
    """Show what a service is doing."""
    return _asking(parser, "/status")


def _healthcheck(parser: ArgumentParser) -> Run:
    """Exit with 0 when a service is ready, with 1 when it is not; say why."""
    return _asking(parser, "/readyz")


COMMANDS: Mapping[str, Callable[[ArgumentParser], Run]] = {
    "participant": _participant,
    "coordinator": _coordinator,
    "aggregator": _aggregator,
    "platform": _platform,
    "demo": _demo,
    "model": _model,
    "status": _status,
    "healthcheck": _healthcheck,
}
"""Each adds its arguments to its parser, and gives back what runs it. The first line of its docstring is its help."""


def _settings(parser: ArgumentParser, cls: "type[S]", *, file: bool = False, long: bool = False) -> "Callable[[Arguments], S]":
    """Make a flag of every setting. What is given back makes the settings, and sets up logging as they say."""
    from fedround import settings
    from fedround.observability import logs

    parser.usage = f"{parser.prog} [options]"
    parser.epilog = "Every option may be given as the variable behind it instead; the option wins."
    if file:
        parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="a configuration file of XAIN FL 0.8 (TOML)")
    for row in cls.rows():
        default = f", default {row.default}" if row.default else ""
        text = f"{row.description} [{row.variable}{default}]".replace("%", "%%")
        parser.add_argument(row.flag(long=long), dest=row.variable, metavar=row.kind, help=text)

    def load(arguments: Arguments) -> "S":
        flags = {row.name: text for row in cls.rows() if (text := arguments[row.variable]) is not None}
        loaded, warnings = settings.load(cls, os.environ, flags, file=arguments.get("config"), long_flags=long)
        logs.configure(loaded.log_format, loaded.log_level)
        for warning in warnings:
            LOG.warning("%s", warning)
        return loaded

    return load


def _asking(parser: ArgumentParser, path: str) -> Run:
    """GET `path` from an ops port and show the answer."""
    parser.add_argument(
        "--from", dest="url", default="http://127.0.0.1:8080", metavar="URL", help="the service's ops port [default %(default)s]"
    )

    def run(arguments: Arguments) -> int:
        # Not httpx: a probe runs every few seconds, and this is imported in a tenth of the time.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(arguments["url"].rstrip("/") + path, timeout=5) as response:
                print(response.read().decode().strip())
        except urllib.error.HTTPError as error:
            print(error.read().decode(errors="replace").strip())
            return Exit.FAILED
        except (OSError, ValueError) as error:
            print(f"no answer from {arguments['url']}: {error}", file=sys.stderr)
            return Exit.FAILED
        return Exit.OK

    return run
