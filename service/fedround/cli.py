"""The command line: `fedround COMMAND`. It alone reads the environment, configures logging and chooses exit codes.

A command's own code is imported when that command is chosen: `fedround --help` and the probes load neither numpy nor a web server.
"""

import difflib
import json
import logging
import os
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, HelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Never

from fedround.commands import asking, view
from fedround.common.text import printable
from fedround.errors import ConfigurationError, FedroundError, ParticipantError, Unauthorized

if TYPE_CHECKING:
    from fedround.common.settings import Settings
    from fedround.common.sources import Line, Loaded

LOG = logging.getLogger("fedround")

LONGEST_ROLLBACK = 120.0
"""Seconds: the aggregator reads a model, which may be large, and may have to finish another first."""

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
    HELD = 75
    CONFIGURATION = 78
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "Success: training completed, or the process stopped on request.",
    Exit.FAILED: "A command that is not a service failed: a service did not answer or refused, or a file could not be written.",
    Exit.USAGE: "The command line is invalid.",
    Exit.UNREACHABLE: "The coordinator was unreachable for longer than `PARTICIPANT_GIVE_UP_AFTER`.",
    Exit.USER_CODE: "The participant's code failed, `PARTICIPANT_MAX_FAILURES` times in a row. The log has its traceback.",
    Exit.HELD: "Another process uses the data directory. Start this one again when that one has ended.",
    Exit.CONFIGURATION: (
        "A setting is missing or invalid, a port is in use, or a file in the data directory is damaged. "
        "The last lines of the log name each problem."
    ),
    Exit.INTERRUPTED: "Ctrl-C ended a command that is not a service.",
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

    def unknown(self, arguments: Sequence[str]) -> Never:
        """Say what was meant, perhaps: what is misspelt, or a flag of `platform` without the service's name before it."""
        word = arguments[0].partition("=")[0]
        commands = list(COMMANDS) if self._subparsers else []
        known = [flag for action in self._actions for flag in action.option_strings] if word.startswith("-") else commands
        meant = [flag for flag in known if word.startswith("--") and flag.endswith(word[1:])]
        meant = meant or difflib.get_close_matches(word, known, n=1)
        self.error(f"there is no {word}" + (f": did you mean {' or '.join(meant)}?" if meant else "; --help shows what there is"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    if argv is None:
        argv = sys.argv[1:]
        if SERVICES.intersection(argv[:1]):
            # Until the service handles them itself: imports may take long, and process 1 of a container has no defaults.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
    try:
        return _main(argv)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


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
        parser.error("which command? `fedround --help` lists them")
    try:
        return run(arguments)
    except FedroundError as error:
        trace: Mapping[str, Any] = {}
        if isinstance(error, ParticipantError):
            from fedround.participant import traces

            trace = traces.logged(error)
        *above, last = str(error).splitlines() if isinstance(error, ConfigurationError) else [str(error)]
        for line in above:  # one log line has one line: what is wrong with the settings are several
            LOG.error("%s", line)
        LOG.error("%s", last, **trace)
        return error.exit_code


def _participant(parser: ArgumentParser) -> Run:
    """Join a coordinator and train when selected, until training is complete."""
    from fedround.common.settings import ParticipantSettings

    def serve(settings: ParticipantSettings) -> int:
        from fedround.participant.isolation import serve_participant

        return serve_participant(settings)

    return _service(parser, serve, ParticipantSettings)


def _coordinator(parser: ArgumentParser) -> Run:
    """Serve a coordinator."""
    from fedround.common.settings import CoordinatorSettings

    def serve(settings: CoordinatorSettings) -> int:
        from fedround.coordinator import app

        app.run(settings)
        return Exit.OK

    return _service(parser, serve, CoordinatorSettings, file=True)


def _aggregator(parser: ArgumentParser) -> Run:
    """Serve an aggregator."""
    from fedround.common.settings import AggregatorSettings

    def serve(settings: AggregatorSettings) -> int:
        from fedround.aggregator import app

        app.run(settings)
        return Exit.OK

    return _service(parser, serve, AggregatorSettings, file=True)


def _platform(parser: ArgumentParser) -> Run:
    """Serve a coordinator and an aggregator in one process."""
    from fedround.common.settings import AggregatorSettings, CoordinatorSettings

    def serve(aggregator: AggregatorSettings, coordinator: CoordinatorSettings) -> int:
        from fedround import platform

        platform.run(coordinator, aggregator)
        return Exit.OK

    return _service(parser, serve, AggregatorSettings, CoordinatorSettings)


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
    """Watch a whole federation train on this machine."""
    from fedround import demo

    demo.add_arguments(parser)
    return demo.run


def _tutorial(parser: ArgumentParser) -> Run:
    """Run the participant of the XAIN FL tutorial."""
    from fedround.participant import tutorial

    tutorial.add_arguments(parser)
    return tutorial.run


def _model(parser: ArgumentParser) -> Run:
    """Fetch the global model, or write the one that a class begins with."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="url", metavar="URL", help="fetch it from this aggregator's ops port")
    source.add_argument("--init", dest="cls", metavar="module:Class", help="write what `initial_weights` of this class returns")
    source.add_argument("--flower", dest="app", metavar="module:app", help="write what this Flower app's client begins with")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .npy or .safetensors file to write")
    parser.add_argument(
        "--round", type=_round, metavar="N", help="with --from: the round whose model it is, or best; by default the last"
    )
    parser.add_argument(
        "--options", default="{}", metavar="JSON", help="keyword arguments for the class, or run config for the app"
    )
    asking.add_ca_file(parser)
    asking.add_token(parser)

    def run(arguments: Arguments) -> int:
        from fedround.commands import model

        output: Path = arguments["output"]
        if (name := arguments["cls"] or arguments["app"]) is not None:
            print(model.init(name, arguments["options"], output, flower=arguments["app"] is not None))
        else:
            print(model.fetch(arguments["url"], output, arguments["round"], arguments["token"], arguments["ca_file"]))
        return Exit.OK

    return run


def _round(text: str) -> str:
    if text != "best" and not (text.isascii() and text.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is neither the number of a round nor best")
    return text


def _rollback(parser: ArgumentParser) -> Run:
    """Make a former global model the newest, and continue training from it."""
    parser.add_argument("--from", dest="url", required=True, metavar="URL", help="the aggregator's ops port")
    parser.add_argument("--round", type=int, required=True, metavar="N", help="the round whose model becomes the newest")
    asking.add_ca_file(parser)
    asking.add_token(parser)

    def run(arguments: Arguments) -> int:
        from fedround.common.wire import one_line

        target = asking.Target(arguments["url"], "aggregator", ca_file=arguments["ca_file"])
        token = asking.token(arguments["token"], target.service)
        status, answer = target.ask("/rollback", token, document={"round": arguments["round"]}, within=LONGEST_ROLLBACK)
        match status, asking.decoded(answer):
            case 200, {"round": int(number), "removed": list(removed)}:
                later = f"removed the models of {len(removed)} later rounds" if removed else "there was no later model"
                print(f"the model of round {number} is the newest; {later}; training continues with round {number + 1}")
                return Exit.OK
            case Unauthorized.status, _:
                raise FedroundError(f"refused with {status}: {asking.missing(target.service)}")
            case _, {"title": str(title), "detail": str(detail)} if detail:
                raise FedroundError(f"refused with {status} {one_line(title)}: {one_line(detail)}")
        raise FedroundError(f"refused with {status}: is this the aggregator's ops port, by default 9082?")

    return run


def _runs(parser: ArgumentParser) -> Run:
    """List the runs of a platform."""
    _of_coordinator(parser)

    def run(arguments: Arguments) -> int:
        from fedround.commands import history

        print(history.runs(arguments["url"], arguments["token"], arguments["ca_file"]))
        return Exit.OK

    return run


def _history(parser: ArgumentParser) -> Run:
    """Write the rounds of a run to a file: who, how long, metrics, statistics of the model."""
    _of_coordinator(parser)
    parser.add_argument("--run", metavar="NAME", help="name or id of the run; by default the current one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .csv or .json file to write")

    def run(arguments: Arguments) -> int:
        from fedround.commands import history

        print(history.history(arguments["url"], arguments["run"], arguments["output"], arguments["token"], arguments["ca_file"]))
        return Exit.OK

    return run


def _of_coordinator(parser: ArgumentParser) -> None:
    parser.add_argument("--from", dest="url", required=True, metavar="URL", help="the coordinator's ops port")
    asking.add_ca_file(parser)
    asking.add_token(parser)


def _status(parser: ArgumentParser) -> Run:
    """Show what a service is doing."""
    asking.add_service(parser)
    asking.add_token(parser)
    parser.add_argument("--output", choices=["text", "json"], help="by default text on a terminal, and JSON elsewhere")

    def run(arguments: Arguments) -> int:
        try:
            target = asking.target(arguments["service"], arguments["url"], arguments["ca_file"], parser.prog)
            status, answer = target.ask("/status", asking.token(arguments["token"], target.service))
        except FedroundError as error:
            print(printable(str(error)), file=sys.stderr)
            return Exit.FAILED
        found = asking.decoded(answer)
        if status == Unauthorized.status:
            print(f"refused with {status}: {asking.missing(target.service)}", file=sys.stderr)
            return Exit.FAILED
        if status != 200 or found is None:
            print(asking.foreign("/status", status), file=sys.stderr)
            return Exit.FAILED
        as_text = arguments["output"] == "text" or (arguments["output"] is None and sys.stdout.isatty())
        print("\n".join(view.lines(found)) if as_text else json.dumps(found))
        return Exit.OK

    return run


def _healthcheck(parser: ArgumentParser) -> Run:
    """Exit with 0 when a service is ready, with 1 when it is not; say why."""
    asking.add_service(parser)

    def run(arguments: Arguments) -> int:
        try:
            status, answer = asking.target(arguments["service"], arguments["url"], arguments["ca_file"], parser.prog).ask("/readyz")
        except FedroundError as error:
            print(printable(str(error)))
            return Exit.FAILED
        match asking.decoded(answer):
            case {"ready": bool(ready), "reasons": [*reasons]}:
                print("ready" if ready else printable(f"not ready: {', '.join(map(str, reasons))}"))
                return Exit.OK if ready else Exit.FAILED
        print(asking.foreign("/readyz", status))
        return Exit.FAILED

    return run


COMMANDS: Mapping[str, Callable[[ArgumentParser], Run]] = {
    "participant": _participant,
    "coordinator": _coordinator,
    "aggregator": _aggregator,
    "platform": _platform,
    "new": _new,
    "demo": _demo,
    "tutorial": _tutorial,
    "model": _model,
    "rollback": _rollback,
    "runs": _runs,
    "history": _history,
    "status": _status,
    "healthcheck": _healthcheck,
}
"""Each adds its arguments to its parser, and gives back what runs it. The first line of its docstring is its help."""
SERVICES = frozenset({"participant", "coordinator", "aggregator", "platform"})
"""Those that run until they are told to end."""


def _service(parser: ArgumentParser, serve: Callable[..., int], *classes: "type[Settings]", file: bool = False) -> Run:
    """Make a flag of every setting. What is given back makes the settings, sets up logging as they say, and calls `serve`."""
    from fedround.common import sources
    from fedround.observability import logs

    long = len(classes) > 1
    parser.usage = f"{parser.prog} [options]"
    parser.epilog = "Every option may be given as the variable behind it instead; the option wins."
    parser.add_argument("--show-settings", action="store_true", help="print the settings in force and who set them, and exit")
    if file:
        parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="a configuration file of XAIN FL 0.8 (TOML)")
    for row in chain.from_iterable(cls.rows() for cls in classes):
        default = f", default {row.default}" if row.default else ""
        text = f"{row.description} [{row.variable}{default}]".replace("%", "%%")
        parser.add_argument(row.flag(long=long), dest=row.variable, metavar=row.kind, help=text)

    def run(arguments: Arguments) -> int:
        loaded: list[Loaded[Any]] = []
        problems = []
        for cls in classes:
            flags = {row.name: text for row in cls.rows() if (text := arguments[row.variable]) is not None}
            try:
                loaded.append(sources.load(cls, os.environ, flags, file=arguments.get("config"), long_flags=long))
            except ConfigurationError as error:
                problems.append(str(error))
                continue
            service = "fedround-platform" if long else f"fedround-{cls.prefix.lower()}"
            logs.configure(loaded[-1].settings.log_format, loaded[-1].settings.log_level, service=service)
            for warning in loaded[-1].warnings:
                LOG.warning("%s", warning)
        if problems:
            raise ConfigurationError("\n".join(problems))
        if arguments["show_settings"]:
            _show(line for of_one in loaded for line in of_one.lines)
            return Exit.OK
        return serve(*(of_one.settings for of_one in loaded))

    return run


def _end(_number: int, _frame: FrameType | None) -> Never:
    sys.exit(Exit.OK)


def _show(lines: "Iterable[Line]") -> None:
    """A table with columns one below the other; once, what two services share."""
    rows = [("variable", "value", "source"), *dict.fromkeys(lines)]
    for line in view.columns([(variable, value or "-", source) for variable, value, source in rows]):
        print(line)
