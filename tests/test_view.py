"""A status as text: what is single in lines, what is many in tables, and of what is long the last."""

from fedround.commands.view import LAST, lines

STATUS = {
    "ready": True,
    "state": "training",
    "attempt": None,
    "warned": False,
    "model": {"round": 3, "dtype": "<f4"},
    "models": [2, 3],
    "faults": [],
    "participants": [
        {"name": "anna", "seconds_since_contact": 0.123456, "figures": {"loss": 0.25}},
        {"name": "bob, the second", "seconds_since_contact": 12.0, "figures": {}},
    ],
    "last_rounds": [{"round": n} for n in range(LAST + 5)],
}


def test_a_status_is_told_in_lines_and_tables() -> None:
    told = list(lines(STATUS))
    assert told[:7] == [
        "ready    yes",
        "state    training",
        "attempt  -",
        "warned   no",
        "model    round=3 dtype=<f4",
        "models   2, 3",
        "faults   -",
    ]
    assert told[7:12] == [
        "",
        "participants",
        "  name             seconds_since_contact  figures",
        "  anna             0.1235                 loss=0.25",
        "  bob, the second  12                     -",
    ]
    assert told[13:15] == [f"last_rounds (the last {LAST})", "  round"]
    assert told[-1] == f"  {LAST + 4}"
    assert len(told) == 15 + LAST


def test_times_are_told_as_people_write_them() -> None:
    (*_, line) = lines({"warnings": [{"time": 0.0, "text": "it burns"}]})
    assert "1970-01-01 " in line or "1969-12-31 " in line
    assert line.endswith("  it burns")
