"""The demo: its silos, its participant, its comparison, and the federation of real processes."""

import csv
import gzip
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedround.demo import HousePrices, ames, contest
from fedround.demo.federation import Fleet, statuses
from fedround.demo.participant import PENALTY
from fedround.demo.view import View
from fedround.errors import FedroundError
from fedround.participant.abc import Update
from fedround.participant.round import Round, Shard, entered
from fedround.tensors.weights import Array
from support.peer import Peer, Reply, answer

TEN = [Shard(index, 10) for index in range(10)]


def all_sales() -> list[dict[str, str]]:
    with gzip.open(ames.FILE, "rt", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def log_prices(silo: ames.Silo) -> list[float]:
    return sorted(np.concatenate([silo.training.prices, silo.held_out.prices]).tolist())


def a_round(number: int, shard: Shard, reported: dict[str, float] | None = None) -> Round:
    return Round(number, shard, ({} if reported is None else reported).update)


def trained(participant: HousePrices, weights: Array | None, round: Round) -> Update:
    with entered(round):
        return participant.train_round(weights)


# The silos


def test_neighbourhoods_and_sales_are_those_of_the_file() -> None:
    assert Counter(sale["Neighborhood"] for sale in all_sales()) == ames.SALES


@pytest.mark.parametrize("count", range(1, 29))
def test_each_neighbourhood_is_in_one_silo(count: int) -> None:
    silos = ames.neighbourhoods(count)
    assert len(silos) == count
    assert [name for silo in silos for name in silo] == list(ames.SALES)


def test_ten_silos_have_enough_sales_each() -> None:
    sizes = [sum(ames.SALES[name] for name in silo) for silo in ames.neighbourhoods(10)]
    assert min(sizes) > 150
    assert max(sizes) < 450


def test_there_are_no_more_silos_than_neighbourhoods() -> None:
    assert ames.neighbourhoods(30) == ames.neighbourhoods(28)
    assert np.array_equal(ames.load(29, 30).training.features, ames.load(1, 28).training.features)


@pytest.mark.parametrize("shard", TEN, ids=str)
def test_a_silo_holds_the_sales_of_its_own_neighbourhoods_and_no_other(shard: Shard) -> None:
    own = ames.neighbourhoods(shard.count)[shard.index]
    prices = [float(sale["Sale_Price"]) for sale in all_sales() if sale["Neighborhood"] in own]
    assert log_prices(ames.load(shard.index, shard.count)) == pytest.approx(sorted(np.log(np.array(prices) / ames.USUAL_PRICE)))


def test_a_fifth_of_every_silo_is_held_out() -> None:
    for shard in TEN:
        silo = ames.load(shard.index, shard.count)
        assert len(silo.held_out.prices) / len(log_prices(silo)) == pytest.approx(0.2, abs=0.003)


@pytest.mark.parametrize("count", [3, 10, 28])
def test_the_same_sales_are_held_out_whichever_way_they_are_grouped(count: int) -> None:
    silos = [ames.load(index, count) for index in range(count)]
    together = np.concatenate([silo.held_out.prices for silo in silos])
    assert sorted(together) == sorted(ames.load(0, 1).held_out.prices)
    assert sum(len(silo.training.prices) for silo in silos) == len(ames.load(0, 1).training.prices)


def test_the_categories_are_exactly_those_of_the_data() -> None:
    sales = all_sales()
    for column, words in ames.WORDS.items():
        assert {sale[column].replace(" ", "_") for sale in sales} == set(words.split())
    assert {sale["Overall_Cond"] for sale in sales} == set(ames.CONDITIONS)
    assert {sale["Heating_QC"] for sale in sales} == set(ames.QUALITIES)


# The participant


def test_all_silos_start_with_the_same_model() -> None:
    for shard in TEN:
        zeros = np.zeros_like(ames.load(shard.index, shard.count).training.features[0])
        first = trained(HousePrices(), None, a_round(0, shard))
        assert np.array_equal(first.weights, trained(HousePrices(), zeros, a_round(0, shard)).weights)


def test_training_reduces_the_error_and_reports_that_of_the_global_model() -> None:
    silo, reported = ames.load(3, 10), dict[str, float]()
    first = trained(HousePrices(), None, a_round(0, Shard(3, 10)))
    assert first.samples == len(silo.training.prices)
    assert silo.training.error(first.weights) < silo.training.error(np.zeros_like(first.weights))
    trained(HousePrices(), first.weights.copy(), a_round(1, Shard(3, 10), reported))
    assert reported == {"held_out_mse": silo.held_out.error(first.weights)}


def test_a_silo_with_nothing_held_out_reports_nothing() -> None:
    landmark, reported = list(ames.SALES).index("Landmark"), dict[str, float]()
    assert trained(HousePrices(), None, a_round(0, Shard(landmark, 28), reported)).samples == 1
    assert reported == {}


def test_a_cancelled_round_is_not_trained_to_its_end() -> None:
    round = a_round(0, TEN[0])
    round.cancelled = True
    assert not trained(HousePrices(epochs=10**12), None, round).weights.any()


def test_more_epochs_change_the_model_more() -> None:
    training = ames.load(0, 10).training
    errors = [training.error(trained(HousePrices(epochs=epochs), None, a_round(0, TEN[0])).weights) for epochs in (1, 5, 50)]
    assert errors == sorted(errors, reverse=True)


# The comparison


def test_the_federation_is_as_good_as_pooled_data_and_better_than_the_median_silo() -> None:
    result = contest.compare(contest.train(TEN, 40, 5), silos=10, rounds=40, epochs=5)
    assert result.federated < 1.05 * result.pooled
    assert result.federated < np.median(result.alone)
    assert "NO" not in result.table()


def test_a_federation_that_misses_its_goals_fails() -> None:
    table = contest.Result(federated=0.3, alone=[0.1, 0.2, 0.4], pooled=0.1).table()
    assert "within 5 % of pooled: NO (+200.0%)" in table
    assert "better than the median silo: NO (+50.0%)" in table


def test_the_pooled_model_is_trained_until_it_converges() -> None:
    features, prices = ames.load(0, 1).training
    moments = features.T @ features / len(prices) + PENALTY * np.eye(features.shape[1])
    best = np.linalg.solve(moments, features.T @ prices / len(prices))
    assert contest.error(contest.train([contest.POOLED], 40, 5)) == pytest.approx(contest.error(best), rel=0.01)


# The federation


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with closing(Fleet(tmp_path)) as fleet:
        yield fleet


def demo(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedround", "demo", *arguments]


def test_the_demo_trains_exactly_the_expected_model() -> None:
    # Settings of the user's environment are for other processes.
    environ = os.environ | {"PARTICIPANT_SHARD": "0/1", "COORDINATOR_ROUNDS": "0", "AGGREGATOR_PORT": "1"}
    done = subprocess.run(demo("--silos", "3", "--rounds", "2"), env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^round +(\d) of 2  3 of 3 silos  +\d+\.\d\d s  error 0\.\d{4}$", done.stdout, re.MULTILINE) == ["1", "2"]
    expected = contest.train([Shard(index, 3) for index in range(3)], 2, 5)
    assert contest.compare(expected, silos=3, rounds=2, epochs=5).table() in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_demo_stops_all_its_processes(number: int) -> None:
    heard = partial(signal.signal, number, signal.SIG_DFL)  # `nohup`, which the tests may run under, has one ignored
    with subprocess.Popen(
        demo("--silos", "2", "--rounds", "1000000"), stdout=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not any(line.startswith("round") for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        process.send_signal(number)
        process.stdout.read()
        assert process.wait() == 128 + signal.SIGINT
    port = re.search(r"127\.0\.0\.1:(\d+)", "".join(lines))
    assert port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port[1])))


def test_a_failed_process_is_shown_with_its_last_lines(fleet: Fleet) -> None:
    fleet.start("gilbert", "participant", PARTICIPANT_CLASS="fedround.demo:HousePrices")
    with pytest.raises(FedroundError, match=r"(?s)gilbert has ended, exit code 78\n.*gilbert: .*PARTICIPANT_COORDINATOR_URL"):
        for _ in fleet.frames():
            pass


def test_a_truncated_response_is_requested_again(fleet: Fleet) -> None:
    complete = answer("200 OK", b'{"state": "complete", "round": 2}')
    with Peer(Reply(complete[:-5], close=True), complete) as peer:
        assert [status["round"] for status in statuses(fleet, peer.url)] == [2]


@pytest.mark.parametrize("arguments", [("--silos", "29"), ("--silos", "0"), ("--rounds", "ten"), ("--epochs", "-1")])
def test_an_impossible_demo_is_refused(arguments: tuple[str, str]) -> None:
    assert subprocess.run(demo(*arguments), capture_output=True, check=False).returncode == 64


def status(rounds: int, **states: str) -> Mapping[str, object]:
    done = {"counted": 2, "seconds": 0.1}
    return {
        "state": "training",
        "rounds": 40,
        "participants": [{"name": name, "state": state} for name, state in states.items()],
        "last_rounds": [done | {"round": number, "figures": {"held_out_mse": 1 / (number + 1)}} for number in range(rounds)],
    }


def test_a_terminal_shows_one_view_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    with os.fdopen(reader, "rb", 0) as seen, os.fdopen(writer, "w") as terminal:
        view = View(terminal, silos=2)
        view.show(status(0))
        view.show(status(4, gilbert="selected"))
        view.write("the end")
        shown = b""
        while not shown.endswith(b"the end\r\n"):
            shown += seen.read(4096)
    first, _, second = shown.decode().partition("\x1b[4F\x1b[J")
    names = [contest.name(index, 2) for index in range(2)]
    assert [line.split() for line in first.splitlines()] == [["training"], [], *([name, "away"] for name in names)]
    assert second.startswith("round   4 of 40  2 of 2 silos    0.10 s  error 0.5000\r\n█▃▂▁\r\n")
