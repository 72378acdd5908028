"""A status as text: single values as lines, lists as tables, and the end of long lists."""

from datetime import datetime

from fedround.commands.view import LAST, lines

STATUS = {
    "ready": True,
    "state": "training",
    "attempt": None,
    "warned": False,
    "run": {"name": "default", "started": 1.796e9},
    "model": {"round": 3, "dtype": "<f4"},
    "models": [2, 3],
    "faults": [],
    "participants": [
        {"name": "anna", "shard": None, "seconds_since_contact": 0.123456, "figures": {"loss": 0.25}},
        {"name": "bob, the second", "shard": None, "seconds_since_contact": 12.0, "figures": {}},
    ],
    "last_rounds": [{"round": n} for n in range(LAST + 5)],
}


def test_a_status_is_printed_in_lines_and_tables() -> None:
    began = datetime.fromtimestamp(1.796e9).astimezone().isoformat(" ", "seconds")
    told = list(lines(STATUS))
    assert told[:8] == [
        "ready    yes",
        "state    training",
        "attempt  -",
        "warned   no",
        f"run      name=default started={began}",
        "model    round=3 dtype=<f4",
        "models   2, 3",
        "faults   -",
    ]
    assert told[8:13] == [
        "",
        "participants (2)",
        "  name             seconds_since_contact  figures",
        "  anna             0.1235                 loss=0.25",
        "  bob, the second  12                     -",
    ]
    assert told[14:16] == [f"last_rounds (the last {LAST} of {LAST + 5})", "  round"]
    assert told[-1] == f"  {LAST + 4}"
    assert len(told) == 16 + LAST


def test_a_table_keeps_an_empty_column() -> None:
    assert list(lines({"participants": [{"name": "", "shard": None}]}))[1:] == ["participants (1)", "  name", "  -"]


def test_times_are_printed_in_readable_units() -> None:
    (*_, line) = lines({"warnings": [{"time": 0.0, "text": "it burns"}]})
    assert "1970-01-01 " in line or "1969-12-31 " in line
    assert line.endswith("  it burns")
