"""The commands that serve until SIGTERM. Their flags are the settings."""

import logging
import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedround.commands import view
from fedround.commands.exits import Arguments, Exit, Run
from fedround.errors import ConfigurationError

if TYPE_CHECKING:
    from fedround.common.settings import Settings
    from fedround.common.sources import Line, Loaded

LOG = logging.getLogger("fedround")


def participant(parser: ArgumentParser) -> Run:
    """Join a coordinator and train when selected, until training is complete."""
    from fedround.common.settings import ParticipantSettings

    def serve(settings: ParticipantSettings) -> int:
        from fedround.participant.isolation import serve_participant

        return serve_participant(settings)

    return _service(parser, serve, ParticipantSettings)


def coordinator(parser: ArgumentParser) -> Run:
    """Serve a coordinator."""
    from fedround.common.settings import CoordinatorSettings

    def serve(settings: CoordinatorSettings) -> int:
        from fedround.coordinator import app

        app.run(settings)
        return Exit.OK

    return _service(parser, serve, CoordinatorSettings, file=True)


def aggregator(parser: ArgumentParser) -> Run:
    """Serve an aggregator."""
    from fedround.common.settings import AggregatorSettings

    def serve(settings: AggregatorSettings) -> int:
        from fedround.aggregator import app

        app.run(settings)
        return Exit.OK

    return _service(parser, serve, AggregatorSettings, file=True)


def platform(parser: ArgumentParser) -> Run:
    """Serve a coordinator and an aggregator in one process."""
    from fedround.common.settings import AggregatorSettings, CoordinatorSettings

    def serve(aggregator: AggregatorSettings, coordinator: CoordinatorSettings) -> int:
        from fedround import platform

        platform.run(coordinator, aggregator)
        return Exit.OK

    return _service(parser, serve, AggregatorSettings, CoordinatorSettings)


def _service(parser: ArgumentParser, serve: Callable[..., int], *classes: "type[Settings]", file: bool = False) -> Run:
    """Add a flag for every setting. The returned function builds the settings, configures logging, and calls `serve`."""
    from fedround.common import sources
    from fedround.observability import logs

    long = len(classes) > 1
    parser.usage = f"{parser.prog} [options]"
    parser.epilog = "The variable in brackets sets an option too. The option takes precedence."
    parser.add_argument("--show-settings", action="store_true", help="print the effective settings and their sources, and exit")
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
            _show(line for each in loaded for line in each.lines)
            return Exit.OK
        return serve(*(each.settings for each in loaded))

    return run


def _show(lines: "Iterable[Line]") -> None:
    """Print the settings as a table. A setting that two services share appears once."""
    rows = [("variable", "value", "source"), *dict.fromkeys(lines)]
    for line in view.columns([(variable, value or "-", source) for variable, value, source in rows]):
        print(line)
