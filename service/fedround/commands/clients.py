"""The commands that send requests to running services: for models, runs, status and health."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from fedround.commands import ops_port, view
from fedround.commands.exits import Arguments, Exit, Run
from fedround.common.text import printable
from fedround.errors import FedroundError, Unauthorized

LONGEST_ROLLBACK = 120.0
"""Seconds for the aggregator to read a model, which may be large, after it has finished another one."""


def model(parser: ArgumentParser) -> Run:
    """Fetch the global model, or write the initial model of a class."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="url", metavar="URL", help="fetch it from this aggregator's ops port")
    source.add_argument("--init", dest="cls", metavar="module:Class", help="write what `initial_weights` of this class returns")
    source.add_argument(
        "--flower", dest="app", metavar="module:app", help="write the initial parameters of this Flower app's client"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .npy or .safetensors file to write")
    parser.add_argument(
        "--round", type=_round, metavar="N", help="with --from: the round whose model to fetch, or best [default: the last]"
    )
    parser.add_argument(
        "--options", default="{}", metavar="JSON", help="keyword arguments for the class, or run config for the app"
    )
    ops_port.add_ca_file(parser)
    ops_port.add_token(parser)

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


def rollback(parser: ArgumentParser) -> Run:
    """Make an earlier global model the newest, and continue training from it."""
    _add_target(parser, "the aggregator's ops port")
    parser.add_argument("--round", type=int, required=True, metavar="N", help="the round whose model becomes the newest")

    def run(arguments: Arguments) -> int:
        from fedround.common.wire import one_line

        target = ops_port.Target(arguments["url"], "aggregator", ca_file=arguments["ca_file"])
        token = ops_port.token(arguments["token"], target.service)
        status, body = target.request("/rollback", token, document={"round": arguments["round"]}, within=LONGEST_ROLLBACK)
        match status, ops_port.decode(body):
            case 200, {"round": int(number), "removed": list(removed)}:
                later = f"removed the models of {len(removed)} later rounds" if removed else "there was no later model"
                print(f"the model of round {number} is the newest; {later}; training continues with round {number + 1}")
                return Exit.OK
            case Unauthorized.status, _:
                raise FedroundError(f"refused with {status}: {ops_port.token_advice(target.service)}")
            case _, {"title": str(title), "detail": str(detail)} if detail:
                raise FedroundError(f"refused with {status} {one_line(title)}: {one_line(detail)}")
        raise FedroundError(f"refused with {status}: is this the aggregator's ops port, by default 9082?")

    return run


def runs(parser: ArgumentParser) -> Run:
    """List the runs of a platform."""
    _add_target(parser, "the coordinator's ops port")

    def run(arguments: Arguments) -> int:
        from fedround.commands import history

        print(history.runs(arguments["url"], arguments["token"], arguments["ca_file"]))
        return Exit.OK

    return run


def history(parser: ArgumentParser) -> Run:
    """Write the rounds of a run to a file: participants, durations, metrics, statistics of the model."""
    _add_target(parser, "the coordinator's ops port")
    parser.add_argument("--run", metavar="NAME", help="name or id of the run [default: the current one]")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .csv or .json file to write")

    def run(arguments: Arguments) -> int:
        from fedround.commands import history

        print(history.history(arguments["url"], arguments["run"], arguments["output"], arguments["token"], arguments["ca_file"]))
        return Exit.OK

    return run


def _add_target(parser: ArgumentParser, help: str) -> None:
    parser.add_argument("--from", dest="url", required=True, metavar="URL", help=help)
    ops_port.add_ca_file(parser)
    ops_port.add_token(parser)


def status(parser: ArgumentParser) -> Run:
    """Show the status of a service."""
    ops_port.add_service(parser)
    ops_port.add_token(parser)
    parser.add_argument("--output", choices=["text", "json"], help="format [default: text on a terminal, else JSON]")

    def run(arguments: Arguments) -> int:
        try:
            target = ops_port.target(arguments["service"], arguments["url"], arguments["ca_file"], parser.prog)
            status, body = target.request("/status", ops_port.token(arguments["token"], target.service))
        except FedroundError as error:
            print(printable(str(error)), file=sys.stderr)
            return Exit.FAILED
        found = ops_port.decode(body)
        if status == Unauthorized.status:
            print(f"refused with {status}: {ops_port.token_advice(target.service)}", file=sys.stderr)
            return Exit.FAILED
        if status != 200 or found is None:
            print(ops_port.not_fedround("/status", status), file=sys.stderr)
            return Exit.FAILED
        as_text = arguments["output"] == "text" or (arguments["output"] is None and sys.stdout.isatty())
        print("\n".join(view.lines(found)) if as_text else json.dumps(found))
        return Exit.OK

    return run


def healthcheck(parser: ArgumentParser) -> Run:
    """Exit with 0 if a service is ready, else with 1; print the reasons."""
    ops_port.add_service(parser)

    def run(arguments: Arguments) -> int:
        try:
            status, body = ops_port.target(arguments["service"], arguments["url"], arguments["ca_file"], parser.prog).request(
                "/readyz"
            )
        except FedroundError as error:
            print(printable(str(error)))
            return Exit.FAILED
        match ops_port.decode(body):
            case {"ready": bool(ready), "reasons": [*reasons]}:
                print("ready" if ready else printable(f"not ready: {', '.join(map(str, reasons))}"))
                return Exit.OK if ready else Exit.FAILED
        print(ops_port.not_fedround("/readyz", status))
        return Exit.FAILED

    return run
