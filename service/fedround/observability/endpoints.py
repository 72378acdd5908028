"""The HTTP endpoints of each service, as `/openapi.json` of its operations port describes them."""

from collections.abc import Sequence
from typing import Literal

from fedround.commands.ops_port import HISTORY, RUNS
from fedround.common import wire
from fedround.observability.openapi import NOTHING, TEXT, Api, Content, Operation, Parameter, Schema, reference

PATH = "/openapi.json"
JSON = "application/json"
NUMBER: Schema = {"type": "integer", "minimum": 0}
UUID: Schema = {"type": "string", "format": "uuid"}
BINARY: Content = {"application/octet-stream": {}}
PRIVATE = (401, 403, 429)
"""Refusals of a participants' endpoint, or of one that `ops.Access` closes without an operators' token."""
READY: Content = {
    JSON: {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}, "reasons": {"type": "array", "items": TEXT}},
        "required": ["ready", "reasons"],
    }
}
ALIVE: Content = {JSON: {"type": "object", "properties": {"alive": {"type": "boolean"}}, "required": ["alive"]}}
OBJECT: Content = {JSON: {"type": "object"}}
ID = Parameter("id", "The participant's id.", "path", UUID)
PERMISSION = Parameter("token", "The upload permission.", "path", UUID)
ETAG = Parameter("ETag", "Identifies the model.")
ROUND = {"type": "object", "properties": {"round": NUMBER}, "required": ["round"]}

COMMON = (
    Operation(
        "get",
        "/livez",
        "Report whether the service is alive.",
        ALIVE,
        "open",
        also={503: ("The service is not alive.", ALIVE)},
        refusals=(),
    ),
    Operation(
        "get",
        "/readyz",
        "Report whether the service is ready.",
        READY,
        "open",
        also={503: ("The service is not ready.", READY)},
        refusals=(),
    ),
    Operation("get", "/status", "Report the state of the service.", READY),
    Operation("get", "/metrics", "Return all metrics, for Prometheus.", {"text/plain": TEXT, "application/openmetrics-text": TEXT}),
    Operation("get", PATH, "Return the OpenAPI document of the service.", OBJECT),
)

PARTICIPANT = Api("participant", None, COMMON)


def _by_id(
    method: Literal["get", "delete"],
    path: str,
    summary: str,
    content: Content,
    *parameters: Parameter,
    status: int = 200,
    headers: Sequence[Parameter] = (),
    body: Content = NOTHING,
) -> Operation:
    return Operation(
        method,
        path,
        summary,
        content,
        "participant",
        parameters=(ID, *parameters),
        body=body,
        status=status,
        headers=headers,
        also={404: ("The id is not a UUID.", NOTHING)},
        refusals=PRIVATE,
    )


def _telemetry(path: str, what: str) -> Operation:
    refusals = (400, 401, 403, 404, 408, 413, 415, 429, 503)
    body: Content = {wire.PROTOBUF: {}}
    return Operation("post", path, f"Forward {what} to the collector (OTLP).", body, "participant", body=body, refusals=refusals)


COORDINATOR = Api(
    "coordinator",
    8081,
    (
        *COMMON,
        Operation(
            "get",
            wire.RENDEZ_VOUS,
            "Register a participant.",
            {JSON: reference("RendezVous")},
            "participant",
            parameters=(
                Parameter(wire.PARTICIPANT_NAME, "The participant's name."),
                Parameter(wire.ORDINAL, "The participant's previous ordinal."),
                Parameter(wire.SHARD, "The participant's shard, such as `3/8`."),
                Parameter(wire.SHARDS, "The participant asks for one of this number of shards."),
                Parameter(wire.EVALUATES, "`true`: the participant can evaluate models."),
            ),
            refusals=PRIVATE,
        ),
        _by_id(
            "get",
            wire.HEARTBEAT,
            "Report that the participant is alive, and return what it must do.",
            {JSON: reference("Heartbeat")},
            Parameter(wire.PREFER, "`wait=N`: hold the response for up to N seconds, and use the additions to XAIN FL 0.8."),
            Parameter(wire.PHASE, "The participant's phase of the round.", schema={"type": "string", "enum": list(wire.PHASES)}),
            Parameter(wire.TROUBLE, "Why the participant cannot reach the aggregator."),
            headers=(Parameter(wire.PREFERENCE_APPLIED, "`wait=N`, if the request has `Prefer: wait=N`."),),
        ),
        _by_id(
            "get",
            wire.START_TRAINING,
            "Return the aggregator's URL and the upload permission to a selected participant.",
            {JSON: reference("StartTraining")},
        ),
        _by_id(
            "delete",
            wire.LEAVE,
            "Remove a participant that leaves. If its training code failed, the body has the reason.",
            NOTHING,
            status=204,
            body={wire.Problem.media_type: {"type": "object", "properties": {"detail": TEXT}}},
        ),
        _telemetry(wire.OTLP_METRICS, "metrics"),
        _telemetry(wire.OTLP_TRACES, "spans"),
        Operation("get", "/", "Return a live page of the federation.", {"text/html": TEXT}, refusals=PRIVATE),
        Operation(
            "get",
            "/events",
            "Stream the status as server-sent events.",
            {"text/event-stream": TEXT},
            refusals=(401, 403, 429, 503),
        ),
        Operation("get", RUNS, "List all runs.", OBJECT, refusals=PRIVATE),
        Operation(
            "get",
            HISTORY,
            "List the rounds of a run.",
            OBJECT,
            parameters=(
                Parameter("run", "The name or the id of the run. Default: the current run.", "query"),
                Parameter("points", "At most this many rounds, evenly spaced and without participants, for curves.", "query"),
            ),
            refusals=(400, 401, 403, 404, 429),
        ),
    ),
)

AGGREGATOR = Api(
    "aggregator",
    8082,
    (
        *COMMON,
        Operation(
            "get",
            wire.UPDATE,
            "Return the global model: `.npy` or safetensors, empty before the first one.",
            BINARY,
            "participant",
            parameters=(ID, PERMISSION, Parameter("If-None-Match", "The `ETag` of the model that the participant has.")),
            headers=(ETAG,),
            also={304: ("The participant has this model.", NOTHING)},
            refusals=(401, 403, 404, 409, 429, 503),
        ),
        Operation(
            "post",
            wire.UPDATE,
            "Upload an update: the number of samples in 4 bytes, big-endian, then the weights as `.npy` or safetensors.",
            NOTHING,
            "participant",
            parameters=(
                ID,
                PERMISSION,
                Parameter(wire.METRICS, "Metrics of training: a JSON object of numbers."),
                Parameter(wire.EVALUATION, 'The evaluation of the global model: `{"samples": 200, "metrics": {"accuracy": 0.9}}`.'),
            ),
            body=BINARY,
            headers=(
                Parameter(
                    wire.UPDATE_OUTCOME,
                    "`counted`, or `repeated` if it was counted before.",
                    schema={"type": "string", "enum": [outcome.value for outcome in wire.UpdateOutcome]},
                ),
            ),
            refusals=(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
        ),
        Operation(
            "get",
            "/model",
            "Return a global model: `.npy` or safetensors.",
            BINARY,
            parameters=(Parameter("round", "The number of its round, or `best`. Default: the newest one.", "query"),),
            headers=(ETAG,),
            refusals=(400, 401, 403, 404, 429, 500),
        ),
        Operation(
            "post",
            "/rollback",
            "Make the model of an earlier round the newest one.",
            {
                JSON: {
                    "type": "object",
                    "properties": {"round": NUMBER, "removed": {"type": "array", "items": NUMBER}},
                    "required": ["round", "removed"],
                }
            },
            "operator with the token",
            body={JSON: ROUND},
            refusals=(400, 401, 403, 404, 413, 415, 429, 500, 503),
        ),
    ),
)
