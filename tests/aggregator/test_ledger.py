import pytest

from fedround.aggregator.ledger import MOST_AT_ONCE, REMEMBERED_ATTEMPTS, Ledger, Upload
from fedround.common.books import Admission, Difference, Newest, Outcome, Verdict
from fedround.errors import Busy, Forbidden, IllegalMove, Late, NotAdmitted, UnknownAttempt


def a_ledger(*ids: str, attempt: str = "attempt-1") -> Ledger:
    ledger = Ledger("first-life")
    ledger.open(attempt, 0, [Admission(id, f"token-{id}") for id in ids])
    return ledger


def deliver(ledger: Ledger, id: str, token: str | None = None, samples: int = 1) -> Upload:
    receipt = ledger.begin(id, token or f"token-{id}")
    assert ledger.countable(receipt)
    ledger.count(receipt, samples, {"loss": 0.5})
    return receipt


def test_an_admitted_update_is_recorded_once_with_all_its_data() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a", samples=7)
    (entry,) = ledger.page("first-life", 0).entries
    assert (entry.seq, entry.attempt, entry.id, entry.outcome, entry.samples) == (1, "attempt-1", "a", Outcome.COUNTED, 7)
    assert entry.metrics == {"loss": 0.5}


def test_unknown_credentials_are_not_admitted() -> None:
    ledger = a_ledger("a")
    for id, token in [("b", "token-b"), ("a", "token-b")]:
        with pytest.raises(NotAdmitted):
            ledger.check_read(id, token)
        with pytest.raises(NotAdmitted):
            ledger.begin(id, token)


@pytest.mark.parametrize("other", ["bert", ""])
def test_an_upload_permission_with_an_owner_is_valid_only_for_the_owner(other: str) -> None:
    ledger = Ledger("first-life")
    ledger.open("attempt-1", 0, [Admission("a", "token-a", "anna")])
    ledger.count(ledger.begin("a", "token-a", "anna"), 1, {})
    ledger.open("attempt-2", 1, [Admission("a", "newer", "anna")])
    for token in ("token-a", "newer"):
        with pytest.raises(Forbidden):
            ledger.check_read("a", token, other)
        with pytest.raises(Forbidden):
            ledger.begin("a", token, other)
    with pytest.raises(NotAdmitted):
        ledger.check_read("a", "no-token", other)
    assert ledger.begin("a", "token-a", "anna").repeated


def test_a_refusal_is_recorded_with_its_reason() -> None:
    ledger = a_ledger("a")
    ledger.refuse(ledger.begin("a", "token-a"), "float32 in place of float64")
    assert ledger.page("first-life", 0).entries[0].reason == "float32 in place of float64"


def test_a_repeated_upload_of_a_counted_update_is_marked_as_repeated() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    again = ledger.begin("a", "token-a")
    assert again.repeated
    ledger.abort(again)
    assert len(ledger.page("first-life", 0).entries) == 1


def test_the_first_of_two_uploads_with_one_token_that_ends_is_counted() -> None:
    ledger = a_ledger("a")
    slow = ledger.begin("a", "token-a")
    deliver(ledger, "a")
    assert not ledger.countable(slow)
    ledger.abort(slow)


def test_counting_an_update_without_checking_it_raises() -> None:
    ledger = a_ledger("a")
    slow = ledger.begin("a", "token-a")
    deliver(ledger, "a")
    with pytest.raises(IllegalMove):
        ledger.count(slow, 1, {})
    assert len(ledger.page("first-life", 0).entries) == 1
    ledger.abort(slow)


def test_a_receipt_can_end_only_once() -> None:
    ledger = a_ledger("a")
    receipt = ledger.begin("a", "token-a")
    ledger.abort(receipt)
    with pytest.raises(IllegalMove, match="abort is not possible in ended"):
        ledger.abort(receipt)
    assert ledger.revoke("attempt-1", "a") is Verdict.REVOKED


def test_the_token_of_a_counted_update_stays_valid_in_later_attempts() -> None:
    ledger = a_ledger("a", "b")
    deliver(ledger, "a")
    ledger.open("attempt-2", 1, [Admission("b", "token-b2")])
    ledger.check_read("a", "token-a")
    assert ledger.begin("a", "token-a").repeated


def test_the_token_of_a_counted_update_is_valid_until_its_id_uses_another() -> None:
    """xain-sdk 0.8.0 continues to use it if start_training is refused, and may be selected again at that moment."""
    ledger = a_ledger("a")
    deliver(ledger, "a")
    ledger.open("attempt-2", 1, [Admission("a", "token-a2")])
    ledger.open("attempt-3", 1, [Admission("a", "token-a3")])
    ledger.check_read("a", "token-a")
    again = ledger.begin("a", "token-a")
    assert again.repeated
    assert not ledger.countable(again)
    ledger.abort(again)
    ledger.check_read("a", "token-a3")
    with pytest.raises(NotAdmitted):
        ledger.begin("a", "token-a")


def test_a_token_is_late_after_its_id_used_another() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    ledger.open("attempt-2", 1, [Admission("a", "token-a2")])
    deliver(ledger, "a", "token-a2")
    with pytest.raises(Late):
        ledger.begin("a", "token-a")


def test_forgotten_ids_have_no_credentials() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    ledger.open("attempt-2", 1, [], forget=["a", "never-known"])
    with pytest.raises(NotAdmitted):
        ledger.check_read("a", "token-a")


def test_a_revoked_token_is_late() -> None:
    ledger = a_ledger("a")
    assert ledger.revoke("attempt-1", "a") is Verdict.REVOKED
    assert ledger.revoke("attempt-1", "a") is Verdict.REVOKED
    with pytest.raises(Late):
        ledger.begin("a", "token-a")


def test_a_counted_update_is_not_revoked() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    assert ledger.revoke("attempt-1", "a") is Verdict.COUNTED


def test_overlapping_uploads_cannot_hold_a_round_forever() -> None:
    ledger = a_ledger("a")
    first, second = ledger.begin("a", "token-a"), ledger.begin("a", "token-a")
    assert ledger.revoke("attempt-1", "a", 30.0) is Verdict.RECEIVING
    with pytest.raises(Late, match="only uploads that had already begun"):
        ledger.begin("a", "token-a")
    ledger.abort(first)
    assert ledger.revoke("attempt-1", "a", 30.0) is Verdict.RECEIVING
    assert ledger.countable(second), "it was on its way"
    ledger.abort(second)
    assert ledger.revoke("attempt-1", "a") is Verdict.REVOKED


def test_a_repeated_upload_is_accepted_after_its_permission_was_revoked() -> None:
    ledger = a_ledger("a")
    first = ledger.begin("a", "token-a")
    assert ledger.revoke("attempt-1", "a", 30.0) is Verdict.RECEIVING
    ledger.count(first, 1, {})
    assert ledger.begin("a", "token-a").repeated


def test_the_number_of_simultaneous_uploads_with_one_permission_is_bounded() -> None:
    ledger = a_ledger("a", "b")
    receipts = [ledger.begin("a", "token-a") for _ in range(MOST_AT_ONCE)]
    with pytest.raises(Busy):
        ledger.begin("a", "token-a")
    ledger.begin("b", "token-b")
    ledger.abort(receipts[0])
    ledger.begin("a", "token-a")


def test_an_upload_permission_is_not_revoked_while_its_update_arrives() -> None:
    ledger = a_ledger("a")
    receipt = ledger.begin("a", "token-a")
    assert ledger.revoke("attempt-1", "a", 30.0) is Verdict.RECEIVING
    ledger.abort(receipt)
    assert ledger.revoke("attempt-1", "a") is Verdict.REVOKED


@pytest.mark.parametrize(
    ("length", "received", "verdict"),
    [
        (1000, 400, Verdict.RECEIVING),
        (1000, 200, Verdict.REVOKED),
        (1000, 0, Verdict.REVOKED),
        (1000, 1000, Verdict.RECEIVING),
        (None, 1, Verdict.RECEIVING),
    ],
)
def test_an_upload_that_cannot_complete_in_time_is_cut_off(length: int | None, received: int, verdict: Verdict) -> None:
    ledger = a_ledger("a")
    receipt = ledger.begin("a", "token-a", now=100.0, length=length)
    assert ledger.revoke("attempt-1", "a", 30.0, now=100.5) is Verdict.RECEIVING, "its rate is not known yet"
    ledger.receive(receipt, received)
    assert ledger.revoke("attempt-1", "a", 30.0, now=120.0) is verdict
    assert ledger.revoke("attempt-1", "a", 0.0, now=150.0) is Verdict.REVOKED, "patience has an end"
    with pytest.raises(Late):
        ledger.receive(receipt, 1)
    with pytest.raises(Late):
        ledger.countable(receipt)


def test_the_reason_of_a_lost_sum_has_no_control_characters() -> None:
    ledger = a_ledger("a")
    assert ledger.page("first-life", 0).lost == ""
    ledger.lose("second-life", "it\noverflows\x1b[2J")
    assert ledger.page("first-life", 0).lost == "it overflows [2J"


def test_an_admission_that_arrives_after_its_revocation_has_no_effect() -> None:
    ledger = a_ledger()
    assert ledger.revoke("attempt-1", "a") is Verdict.REVOKED
    ledger.admit("attempt-1", [Admission("a", "token-a")])
    with pytest.raises(NotAdmitted):
        ledger.begin("a", "token-a")


def test_a_second_token_within_an_attempt_ends_the_first() -> None:
    ledger = a_ledger("a")
    first = ledger.begin("a", "token-a")
    ledger.admit("attempt-1", [Admission("a", "token-a2")])
    deliver(ledger, "a", "token-a2")
    with pytest.raises(Late):
        ledger.countable(first)
    ledger.abort(first)


def test_a_counted_id_is_not_admitted_again_in_the_same_attempt() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    with pytest.raises(IllegalMove):
        ledger.admit("attempt-1", [Admission("a", "token-a2")])
    ledger.check_read("a", "token-a")


def test_closing_over_the_counted_ids_ends_the_attempt() -> None:
    ledger = a_ledger("a", "b", "c")
    late = ledger.begin("c", "token-c")
    deliver(ledger, "b", samples=2)
    deliver(ledger, "a", samples=3)
    for ids in (["a", "b"], ["b", "a"]):
        assert ledger.close("attempt-1", ids) is None
    with pytest.raises(Late):
        ledger.countable(late)
    ledger.refuse(late)
    assert len(ledger.page("first-life", 0).entries) == 2


def test_closing_over_other_ids_names_the_difference_and_closes_nothing() -> None:
    ledger = a_ledger("a", "b", "c")
    deliver(ledger, "a")
    assert ledger.close("attempt-1", ["b"]) == Difference(missing=frozenset("b"), surplus=frozenset("a"))
    deliver(ledger, "b")


def test_a_closed_attempt_admits_no_participant() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    ledger.close("attempt-1", ["a"])
    ledger.admit("attempt-1", [Admission("b", "token-b")])
    with pytest.raises(NotAdmitted):
        ledger.begin("b", "token-b")


def test_opening_an_attempt_voids_the_updates_of_the_former_one() -> None:
    ledger = a_ledger("a", "b")
    arriving = ledger.begin("b", "token-b")
    deliver(ledger, "a")
    assert ledger.open("attempt-2", 0, [Admission("a", "token-a2")])
    with pytest.raises(Late):
        ledger.countable(arriving)
    assert ledger.close("attempt-2", ["a"]) == Difference(missing=frozenset("a"), surplus=frozenset())


def test_opening_the_same_attempt_again_changes_nothing() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    assert not ledger.open("attempt-1", 0, [Admission("a", "token-a")])
    assert ledger.close("attempt-1", ["a"]) is None


def test_a_round_that_has_a_model_is_not_opened_again() -> None:
    ledger = Ledger("second-life", Newest(3, parameters=5))
    for round in (2, 3):
        with pytest.raises(UnknownAttempt):
            ledger.open("attempt-1", round, [Admission("a", "token-a")])
    assert ledger.open("attempt-1", 4, [Admission("a", "token-a")])
    ledger.newest = Newest(4, parameters=5)
    assert not ledger.open("attempt-1", 4, [Admission("a", "token-a")])


def test_calls_for_an_attempt_that_ended_are_refused() -> None:
    ledger = a_ledger("a")
    ledger.open("attempt-2", 1, [])
    with pytest.raises(UnknownAttempt):
        ledger.open("attempt-1", 0, [])
    with pytest.raises(UnknownAttempt):
        ledger.admit("attempt-1", [])
    with pytest.raises(UnknownAttempt):
        ledger.revoke("attempt-1", "a")
    with pytest.raises(UnknownAttempt):
        ledger.close("attempt-1", [])


def test_the_number_of_remembered_attempts_is_bounded() -> None:
    ledger = Ledger("first-life")
    for number in range(REMEMBERED_ATTEMPTS + 2):
        ledger.open(f"attempt-{number}", number, [])
    assert ledger.open("attempt-0", 0, [])


def test_a_refused_update_is_recorded_and_its_permission_ends() -> None:
    ledger = a_ledger("a")
    ledger.refuse(ledger.begin("a", "token-a"))
    (entry,) = ledger.page("first-life", 0).entries
    assert (entry.id, entry.outcome) == ("a", Outcome.REFUSED)
    with pytest.raises(Late):
        ledger.begin("a", "token-a")


def test_a_refused_repetition_does_not_change_the_counted_update() -> None:
    ledger = a_ledger("a")
    slow = ledger.begin("a", "token-a")
    deliver(ledger, "a")
    ledger.refuse(slow)
    assert [e.outcome for e in ledger.page("first-life", 0).entries] == [Outcome.COUNTED]


def test_entries_are_kept_until_they_are_acknowledged() -> None:
    ledger = a_ledger("a", "b", "c")
    for id in "abc":
        deliver(ledger, id)
    assert [e.id for e in ledger.page("first-life", 0).entries] == ["a", "b", "c"]
    assert [e.id for e in ledger.page("first-life", 2).entries] == ["c"]
    assert [e.id for e in ledger.page("first-life", 0).entries] == ["c"]
    assert ledger.acknowledged == 2


def test_an_acknowledgement_beyond_the_last_entry_is_ignored() -> None:
    ledger = a_ledger("a")
    ledger.page("first-life", 99)
    deliver(ledger, "a")
    assert [e.seq for e in ledger.page("first-life", 0).entries] == [1]


def test_a_reader_with_another_incarnation_acknowledges_nothing() -> None:
    ledger = a_ledger("a")
    deliver(ledger, "a")
    page = ledger.page("another-life", 1)
    assert (page.incarnation, len(page.entries), ledger.acknowledged) == ("first-life", 1, 0)


def test_losing_the_sum_ends_the_attempt_and_starts_a_new_incarnation() -> None:
    ledger = a_ledger("a", "b")
    arriving = ledger.begin("b", "token-b")
    deliver(ledger, "a")
    ledger.lose("second-life")
    assert ledger.page("first-life", 1).incarnation == "second-life"
    assert ledger.page("second-life", 0).entries == ()
    with pytest.raises(Late):
        ledger.countable(arriving)
    with pytest.raises(IllegalMove):
        ledger.count(arriving, 1, {})
    ledger.refuse(arriving)
    with pytest.raises(UnknownAttempt):
        ledger.open("attempt-1", 0, [])
    assert ledger.open("attempt-2", 0, [Admission("a", "token-a2")])
    deliver(ledger, "a", "token-a2")
    assert ledger.page("second-life", 0).entries[0].seq == 1


def test_a_ledger_without_an_attempt_can_lose_its_sum_too() -> None:
    ledger = Ledger("first-life")
    ledger.lose("second-life")
    assert ledger.incarnation == "second-life"
    with pytest.raises(UnknownAttempt):
        ledger.close("attempt-1", [])


def test_a_token_is_known_as_long_as_its_permission() -> None:
    ledger = a_ledger("a")
    assert ledger.knows("a", "token-a")
    assert not ledger.knows("a", "another")
    assert not ledger.knows("b", "token-a")
    deliver(ledger, "a")
    ledger.open("attempt-2", 1, [Admission("a", "newer")])
    assert ledger.knows("a", "newer")
    assert ledger.knows("a", "token-a"), "a counted token stays good"
