"""The OpenAPI 3.1 document of a service, from descriptions of its HTTP endpoints. `endpoints.py` has the descriptions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from fedround.common import wire

Schema = Mapping[str, Any]
"""A JSON Schema."""
Content = Mapping[str, Schema]
"""The schemas of a body by media type; empty: no body."""

TEXT: Schema = {"type": "string"}
NOTHING: Content = {}
MESSAGES = (wire.RendezVous, wire.Heartbeat, wire.StartTraining, wire.Problem)
"""Messages with a schema in the document."""
WITH_OK = ("RendezVous", "StartTraining")
"""Messages whose encoding adds the field `ok`."""

REASONS: Mapping[int, str] = {
    400: "The request is invalid or incomplete.",
    401: "The token or the certificate is missing or unknown.",
    403: "The token or the certificate does not permit this.",
    404: "Not found.",
    408: "The upload is too slow.",
    409: "The round of this upload permission is over, or the permission was revoked.",
    413: "The body is too large.",
    415: "The body has the wrong type.",
    422: "The update has the wrong shape or precision, is not finite, or is out of proportion.",
    429: "Too many requests, or no free seat. `Retry-After` says when to try again.",
    500: "The model cannot be read.",
    503: "Not available now.",
}

SCHEMES = {
    "participantToken": {"type": "http", "scheme": "bearer", "description": "The participant's token."},
    "clientCertificate": {"type": "mutualTLS", "description": "The participant's certificate."},
    "operatorToken": {"type": "http", "scheme": "bearer", "description": "The operators' token of this service."},
}

SECURITY: Mapping[str, Sequence[Mapping[str, Sequence[str]]]] = {
    "open": [],
    "participant": [{}, {"participantToken": []}, {"clientCertificate": []}],
    "operator": [{}, {"operatorToken": []}],
    "operator with the token": [{"operatorToken": []}],
}
"""Ways to authenticate, by the kind of client. `{}` means none, because the service's settings may require none."""


class Parameter(NamedTuple):
    """A parameter of a request, or a header of a response."""

    name: str
    description: str
    where: Literal["path", "query", "header"] = "header"
    schema: Schema = TEXT

    def described(self) -> dict[str, Any]:
        """Return the Parameter Object of OpenAPI."""
        required = {"required": True} if self.where == "path" else {}
        return {"name": self.name, "in": self.where, **required, **self.header()}

    def header(self) -> dict[str, Any]:
        """Return the Header Object of OpenAPI."""
        return {"description": self.description, "schema": self.schema}


class Operation(NamedTuple):
    """An HTTP method of a path.

    Args:
        method: The HTTP method, in lower case.
        path: The path, with parameters in braces.
        summary: The effect of the request, in one sentence.
        content: The body of the response with `status`.
        access: A key of `SECURITY`. Endpoints for a participant are on the participants' port, all others on the operations port.
        parameters: Path, query and header parameters.
        body: The body of the request.
        status: The status of a successful response.
        headers: Headers of the response with `status`.
        also: The meaning and the body of further responses, by status.
        refusals: Statuses of responses with a `Problem`.
    """

    method: Literal["get", "post", "delete"]
    path: str
    summary: str
    content: Content
    access: str = "operator"
    parameters: Sequence[Parameter] = ()
    body: Content = NOTHING
    status: int = 200
    headers: Sequence[Parameter] = ()
    also: Mapping[int, tuple[str, Content]] | None = None
    refusals: Sequence[int] = (401, 429)

    def described(self) -> dict[str, Any]:
        """Return the Operation Object of OpenAPI."""
        responses: dict[str, Any] = {str(self.status): _response("Success.", self.content, self.headers)}
        responses |= {str(status): _response(*meaning) for status, meaning in (self.also or {}).items()}
        refused: Content = {wire.Problem.media_type: reference("Problem")}
        responses |= {str(status): _response(REASONS[status], refused) for status in self.refusals}
        return {
            "summary": self.summary,
            "security": SECURITY[self.access],
            **({"parameters": [each.described() for each in self.parameters]} if self.parameters else {}),
            **({"requestBody": {"required": self.method == "post", "content": _content(self.body)}} if self.body else {}),
            "responses": responses,
        }


@dataclass(frozen=True)
class Api:
    """The endpoints of one service.

    Args:
        service: The name of the service.
        port: The default port for participants; None: it has none.
        operations: The operations of its endpoints.
    """

    service: str
    port: int | None
    operations: Sequence[Operation]

    @cached_property
    def json(self) -> bytes:
        """The document as JSON."""
        return json.dumps(self.document()).encode() + b"\n"

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        paths: dict[str, dict[str, Any]] = {}
        for operation in self.operations:
            item = paths.setdefault(operation.path, {"servers": [self._server(operation)]})
            item[operation.method] = operation.described()
        return {
            "openapi": "3.1.0",
            "info": {"title": f"fedround {self.service}", "version": version("fedround")},
            "paths": paths,
            "components": {"schemas": _schemas(), "securitySchemes": SCHEMES},
        }

    def _server(self, operation: Operation) -> dict[str, Any]:
        if operation.access != "participant":
            return {"url": "/", "description": "The operations port."}
        variables = {"scheme": "http", "host": "localhost", "port": str(self.port)}
        return {
            "url": "{scheme}://{host}:{port}",
            "description": "The participants' port.",
            "variables": {name: {"default": value} for name, value in variables.items()},
        }


def reference(name: str) -> Schema:
    """Return the schema of one of the `MESSAGES`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _content(content: Content) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in content.items()}


def _response(description: str, content: Content = NOTHING, headers: Sequence[Parameter] = ()) -> dict[str, Any]:
    return {
        "description": description,
        **({"headers": {each.name: each.header() for each in headers}} if headers else {}),
        **({"content": _content(content)} if content else {}),
    }


def _schemas() -> dict[str, Any]:
    """Return the schema of each message, and of the types in it."""
    adapters: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (message.__name__, "validation", TypeAdapter(message)) for message in MESSAGES
    ]
    schemas: dict[str, Any] = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")[1]["$defs"]
    for name in WITH_OK:
        schemas[name]["properties"]["ok"] = {"type": "boolean"}
        schemas[name]["required"].append("ok")
    return schemas
