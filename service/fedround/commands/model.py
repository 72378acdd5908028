"""`fedround model`: download a global model, or write the initial model of a training."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedround.aggregator.codecs import suffix_of
from fedround.commands import ops_port
from fedround.common.durable import Directory, replace
from fedround.common.settings import flower_app
from fedround.errors import ConfigurationError, FedroundError, Intercepted, Refused, Unauthorized
from fedround.http.client import fetch_model
from fedround.participant.abc import NumPyParticipant, shared_tensors
from fedround.participant.load import CLASS, FLOWER, OPTIONS, load_participant
from fedround.tensors.weights import Layout, encode_model

ADVICE = "is this the aggregator's ops port, by default 9082?"


def fetch(url: str, output: Path, round: str | None, token: str | None, ca_file: Path | None) -> str:
    """Download the global model to `output`. Return a message for the user. Raises `FedroundError`."""
    try:
        url, token = ops_port.check_url(url), ops_port.token(token, "aggregator")
        model, number = fetch_model(url, round=round, token=token, ca_file=ca_file)
    except Refused as error:
        if error.status == Unauthorized.status:
            raise FedroundError(f"{error}: {ops_port.token_advice('aggregator')}") from error
        if error.detail in ("", "Not Found"):
            raise FedroundError(f"{error}: {ADVICE}") from error
        raise
    except Intercepted as error:
        raise FedroundError(f"{error} {ADVICE}") from error
    _write(output, [model])
    return f"{output}: the global model after round {number}, {len(model)} bytes{_named(output, suffix_of(model))}"


def init(name: str, options: str, output: Path, *, flower: bool = False) -> str:
    """Write the initial weights of a class or a Flower app, without local tensors. Return a message for the user.

    Raises:
        ConfigurationError: The class does not exist, or has no `initial_weights`.
        FedroundError: The weights are invalid, or cannot be written.
    """
    flag = "--flower" if flower else "--init"
    try:
        given = json.loads(options)
    except ValueError as error:
        raise ConfigurationError(f"--options: invalid JSON: {error}") from error
    if ":" not in name or not isinstance(given, dict):
        raise ConfigurationError(f"{flag} must be module:name, and --options a JSON object")
    try:
        participant = load_participant(*(flower_app(name, given) if flower else (name, given)))
    except ConfigurationError as error:
        text = str(error).replace(CLASS, flag).replace(FLOWER, flag).replace(OPTIONS, "--options")
        raise ConfigurationError(text) from error
    if not isinstance(participant, NumPyParticipant):
        raise ConfigurationError(f"{flag}: {name} is not a fedround.NumPyParticipant")
    try:
        weights, _ = shared_tensors(participant.initial_weights(), participant.local_tensors)
    except NotImplementedError as error:
        raise ConfigurationError(f"{flag}: {name} has no method `initial_weights(self)`, which returns them") from error
    parts = encode_model(weights)
    _write(output, parts)
    return f"{output}: {Layout.of(weights)}, {sum(map(len, parts))} bytes{_named(output, suffix_of(parts[0]))}"


def _write(output: Path, parts: Sequence[memoryview]) -> None:
    try:
        replace(Directory(output.parent, mode=0o666), output.name, parts)
    except OSError as error:
        raise FedroundError(f"cannot write the model to {output}: {error.strerror}") from error


def _named(output: Path, suffix: str) -> str:
    known = {".npy", ".safetensors"}
    return f"; note that its format is {suffix[1:]}" if output.suffix in known and output.suffix != suffix else ""
