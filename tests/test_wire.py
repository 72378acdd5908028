"""The messages: 0.8's bytes, and what a peer may send or not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround.common import wire
from fedround.common.wire import Claim, Departure, Heartbeat, HeartbeatState, Problem, RendezVous, Run, StartTraining, one_line
from fedround.errors import BadAnswer

ID = "0b8b3f6e-52a5-4b44-8e51-5f0a3c1f0a77"
ids = st.uuids(version=4).map(str)
numbers = st.none() | st.integers(0, 2**40)
texts = st.none() | st.text(max_size=20)


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        (RendezVous(ID), f'{{"id":"{ID}","ok":true}}'),
        (RendezVous(None), '{"id":null,"ok":false}'),
        (RendezVous(ID, ordinal=0), f'{{"id":"{ID}","ok":true,"ordinal":0}}'),
        (Heartbeat(HeartbeatState.ROUND, 0), '{"round":0,"state":"round"}'),
        (Heartbeat(HeartbeatState.STAND_BY), '{"round":null,"state":"stand_by"}'),
        (StartTraining("http://localhost:8082", ID), f'{{"url":"http://localhost:8082","token":"{ID}","ok":true}}'),
        (StartTraining(None, None), '{"url":null,"token":null,"ok":false}'),
        (Problem(409, "Conflict"), '{"title":"Conflict","status":409}'),
        (Problem(409, "Conflict", "too late"), '{"title":"Conflict","status":409,"detail":"too late"}'),
    ],
)
def test_messages_are_those_of_0_8_to_the_byte_followed_by_our_fields(
    message: RendezVous | Heartbeat | Problem, encoded: str
) -> None:
    assert message.encode().decode() == encoded


@given(st.none() | ids, numbers)
def test_a_rendez_vous_survives_the_round_trip(id: str | None, ordinal: int | None) -> None:
    assert RendezVous.decode(RendezVous(id, ordinal).encode()) == RendezVous(id, ordinal)


@given(st.sampled_from(HeartbeatState), st.integers(0, 2**40), texts, st.none() | ids, texts, texts, numbers)
def test_a_heartbeat_survives_the_round_trip(
    state: HeartbeatState,
    number: int,
    url: str | None,
    token: str | None,
    traceparent: str | None,
    tracelink: str | None,
    counted: int | None,
) -> None:
    message = Heartbeat(state, number if state is HeartbeatState.ROUND else None, url, token, traceparent, tracelink, counted)
    assert Heartbeat.decode(message.encode()) == message


@given(st.text(max_size=20), ids, texts, texts)
def test_a_training_request_survives_the_round_trip(url: str, token: str, traceparent: str | None, tracelink: str | None) -> None:
    message = StartTraining(url, token, traceparent, tracelink)
    assert StartTraining.decode(message.encode()) == message


@given(
    st.text(max_size=20),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=9)),
    st.none() | st.integers(0, 9).map(lambda index: (index, 10)),
)
def test_a_run_survives_the_round_trip(
    name: str, evaluate: bool, train: bool, config: dict[str, int | str], shard: tuple[int, int] | None
) -> None:
    run = Run("an id", one_line(name), 7, config, evaluate, train, shard)
    for message in (StartTraining("url", ID, run=run), Heartbeat(HeartbeatState.STAND_BY, run=run)):
        assert type(message).decode(message.encode()) == message


@pytest.mark.parametrize(
    ("own", "asked", "claim"),
    [
        ("3/8", None, Claim(8, 3)),
        (None, "8", Claim(8, asks=True)),
        ("3/8", "8", Claim(8, 3, asks=True)),
        ("3/10", "8", Claim(8, asks=True)),
        (None, None, None),
        ("8/8", None, None),
        ("0/1", None, None),
        ("-1/8", None, None),
        ("3/8, 4/8", None, None),
        ("3/\u0668", None, None),
        (None, "8 ", None),
        (None, "10001", None),
    ],
)
def test_a_claim_of_shards_is_read_or_ignored(own: str | None, asked: str | None, claim: Claim | None) -> None:
    headers = {name: text for name, text in {wire.SHARD: own, wire.SHARDS: asked}.items() if text is not None}
    assert Claim.decode(headers) == claim
    assert claim is None or Claim.decode(claim.headers()) == claim


@pytest.mark.parametrize(
    ("message", "body", "complaint"),
    [
        (
            RendezVous,
            b"<!DOCTYPE html><html>",
            "not a JSON object; it begins with '<!DOCTYPE html><html>': is this URL a coordinator?",
        ),
        (RendezVous, b"[]", "not a JSON object"),
        (RendezVous, b"[" * 60_000, "not a JSON object; it begins with '[[[["),
        (RendezVous, b'{"status":"fine"}', "'ok' is neither true nor false"),
        (StartTraining, b'{"ok":"yes"}', "'ok' is neither true nor false"),
        (RendezVous, b'{"id":7,"ok":true}', "'id' is not a string"),
        (RendezVous, b'{"id":"seven","ok":true}', "'id' is not a UUID"),
        (RendezVous, b'{"id":null,"ok":false,"ordinal":-1}', "'ordinal' is not a whole number of at least 0"),
        (Heartbeat, b'{"state":"dance","round":null}', "the heartbeat's state is 'dance', which the protocol does not know"),
        (Heartbeat, b'{"state":"' + b"x" * 60_000 + b'"}', "the heartbeat's state is 'xxxx"),
        (Heartbeat, b'{"state":"round","round":null}', "`round`, but its round is not a number"),
        (Heartbeat, b'{"state":"round","round":true}', "'round' is not a whole number"),
        (Heartbeat, b'{"state":"round","round":9007199254740992}', "'round' is not a whole number"),
        (Heartbeat, b'{"state":"stand_by","counted":' + b"9" * 4000 + b"}", "'counted' is not a whole number"),
        (Heartbeat, b'{"state":"round","round":1,"token":"x"}', "'token' is not a UUID"),
        (StartTraining, b'{"ok":true}', "'url' is not a string"),
        (Heartbeat, b'{"state":"stand_by","run":"first"}', "'run' is not a run"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":1,"config":{},"shard":[8,8]}}', "is not a shard"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":1,"config":{},"shard":"3/8"}}', "is not a shard"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":1,"config":{},"shard":[0,10001]}}', "is not a shard"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":1,"config":{},"shard":[false,2]}}', "is not a shard"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":-1,"config":{}}}', "'run' is not a run"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":9007199254740992,"config":{}}}', "is not a run"),
        (Heartbeat, b'{"state":"stand_by","run":{"id":"a","name":"b","rounds":1,"config":{"x":[]}}}', "'run' is not a run"),
    ],
)
def test_an_invalid_message_is_a_bad_answer(
    message: type[RendezVous | Heartbeat | StartTraining], body: bytes, complaint: str
) -> None:
    with pytest.raises(BadAnswer) as raised:
        message.decode(body)
    assert complaint in str(raised.value)
    assert len(str(raised.value)) < 200


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.booleans() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_any_bytes_are_a_message_or_a_bad_answer(body: bytes) -> None:
    for message in (RendezVous, Heartbeat, StartTraining):
        with pytest.raises(BadAnswer):
            message.decode(body)


@pytest.mark.parametrize("form", [ID, ID.upper(), ID.replace("-", ""), f"urn:uuid:{ID}"])
def test_an_id_is_accepted_in_all_forms_of_0_8(form: str) -> None:
    assert wire.parse_id(form) == ID


def test_an_id_must_be_a_uuid() -> None:
    assert wire.parse_id("nobody") is None
    assert wire.parse_id("\u0661" * 32) is None, "a digit for Python, and for nobody else"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=10", 10),
        ("respond-async, Wait=10", 10),
        ('wait="10"; foo=bar', 10),
        ("wait=0", 0),
        ("wait", None),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait=٣", None),
        ("handling=strict", None),
    ],
)
def test_a_preference_to_wait_is_read(header: str | None, seconds: float | None) -> None:
    assert wire.parse_prefer_wait(header) == seconds


@pytest.mark.parametrize(("text", "name"), [("silo-1.de", "silo-1.de"), ("Silo", None), ("", None), ("x" * 64, None), (None, None)])
def test_a_name_must_have_the_allowed_characters(text: str | None, name: str | None) -> None:
    assert wire.parse_name(text) == name


@given(st.text(max_size=100))
def test_any_host_name_can_be_converted_to_a_name(text: str) -> None:
    assert wire.parse_name(wire.clean_name(text)) is not None


def test_the_reason_for_leaving_is_one_short_line_or_none() -> None:
    assert Departure.decode(Departure("it\nbroke " + "x" * 300).encode()) == Departure(f"it broke {'x' * 191}")
    for body in (b"", b"[]", b"{}", b'{"detail":7}', b"\xff", b"[" * 100_000):
        assert Departure.decode(body) == Departure()
