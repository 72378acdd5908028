"""`make chaos`: cause one fault after another in a federation, and check its models all the time.

The participant with shard k of N adds N to every N-th weight, beginning with the k-th. After R rounds all weights are exactly R. So
a lost update shows, and so does one that counts twice, or a shard that two participants train. In the case `fedadam` every weight
must be that of a run without faults, to the last bit. So the state of another model shows. Print a summary. Exit with 1 if a check
fails, or if no round ends after the last fault.
"""

import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path[:1] = [str(Path(__file__).parent.parent)]

from chaos.faults import FAULTS  # noqa: E402 only now it can be found
from chaos.federation import COUNT, ERRORS, Broken, Federation  # noqa: E402

UPDATE = re.compile(r"^update of \w+ \(\d+ bytes\): (\w+)")


class Witness:
    """A thread that checks the newest model all the time: it is exact, and never older than the one before."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._newest = -1
        self._stop = threading.Event()
        self.complaint: Broken | None = None
        self.models = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def check(self) -> None:
        if self.complaint is not None:
            raise self.complaint

    def look(self) -> int:
        """Check the newest model, and return its round. Raises `Broken`."""
        number, _ = self._federation.model()
        if number < self._newest:
            raise Broken(f"the model of round {self._newest} was served, and then that of round {number}")
        self._newest = number
        self.models += 1
        return number

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            try:
                self.look()
            except Broken as complaint:
                self.complaint = complaint
                return
            except ERRORS:
                pass


def torment(f: Federation, random: random.Random, witness: Witness, seconds: float) -> tuple[Counter[str], list[float]]:
    """Cause one or two faults at a time, for some seconds. Return the number of each, and the seconds of recovery."""
    made: Counter[str] = Counter()
    recoveries = []
    f.recovered()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with ExitStack() as stack:
            for group in random.sample(FAULTS, random.choice([1, 1, 2])):
                name = random.choice(list(group))
                stack.enter_context(group[name](f, random))
                made[name] += 1
            threading.Event().wait(random.choice([0.0, 0.5, 2.0, 5.0]) * random.random())
        if random.random() < 0.5:
            recoveries.append(f.recovered())
        witness.check()
    recoveries.append(f.recovered())
    return made, recoveries


def close(f: Federation, witness: Witness) -> int:
    """Stop all processes. Return the number of rounds. Raises `Broken`."""
    for member in f.participants:
        member.process.send(signal.SIGTERM)
    ended = {member.name: member.process.wait() for member in f.participants}
    witness.check()
    rounds, newest = f.round(), witness.look()
    if newest != rounds - 1:
        raise Broken(f"{rounds} rounds are completed, but the newest model is that of round {newest}")
    for number in f.aggregator.process.status("AGGREGATOR_OPS_PORT")["models"]:
        f.model(number)
    ended |= {member.name: member.process.end() for member in reversed(f.services)}
    if any(ended.values()):
        raise Broken(f"asked to stop, not all ended with 0: {ended}")
    return rounds


def books(f: Federation, rounds: int) -> str:
    """Return a summary of the logs. Raises `Broken`."""
    for member in f.members:
        for process in member.lives:
            if "Traceback" in process.log:
                raise Broken(f"{member.name} did not expect something:\n{process.log[-3000:]}")
    completed = Counter(int(match[1]) for match in f.coordinator.lines(r"^round (\d+) completed in"))
    counted = sum(int(match[1]) for match in f.coordinator.lines(r"^round \d+ completed in [\d.]+ s: (\d+) updates"))
    outcomes = Counter(match[1] for match in f.aggregator.lines(UPDATE.pattern))
    trained = sum(len(journal.read_text().splitlines()) for journal in f.journals)
    again = sum(1 for member in f.participants for _ in member.lines("requests the same update again"))
    attempts = rounds + sum(1 for _ in f.coordinator.lines("restarts in")) + len(f.coordinator.lives) - 1
    twice = sum(number - 1 for number in completed.values())
    if counted < COUNT * len(completed):
        raise Broken(f"{len(completed)} rounds were completed with {counted} updates in all")
    return "\n".join(
        [
            f"rounds                      {rounds:6}",
            f"attempts, about             {attempts:6}",
            f"logged as completed twice   {twice:6}   a coordinator was killed between its log and its disk",
            f"updates in the results      {COUNT * rounds:6}",
            f"trainings run               {trained:6}",
            f"updates requested again     {again:6}   without another training",
            *(f"updates {outcome:20}{number:6}" for outcome, number in outcomes.most_common()),
        ]
    )


def main() -> int:
    """Run for the requested time."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="duration of the faults [default %(default)s]")
    parser.add_argument("--seed", type=int, default=None, help="repeat the sequence of faults of this seed")
    parser.add_argument(
        "--case",
        choices=["platform", "services", "fedadam"],
        default="services",
        help="one process, two, or two with a strategy that has a state [default %(default)s]",
    )
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.case}, {COUNT} participants, {arguments.seconds:.0f} s of faults", flush=True)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        strategy = "fedadam" if arguments.case == "fedadam" else "weighted_average"
        f = Federation(Path(directory), chance, apart=arguments.case != "platform", strategy=strategy)
        witness = Witness(f)
        try:
            with f:
                with witness.watching():
                    made, recoveries = torment(f, chance, witness, arguments.seconds)
                rounds = close(f, witness)
            print(books(f, rounds))
        except (Broken, AssertionError) as broken:
            print(f"\nBROKEN, with seed {seed}: {broken}", file=sys.stderr)
            for member in f.members:
                member.process.kill()
                print(f"\n{member.name}:\n{member.process.log[-3000:]}", file=sys.stderr)
            return 1
    for name, number in sorted(made.items()):
        print(f"{name:28}{number:6}")
    median, worst = statistics.median(recoveries), max(recoveries)
    print(f"models looked at            {witness.models:6}   each of them exact")
    print(f"recovered after             {median:6.1f} s, the median of {len(recoveries)}; {worst:.1f} s at the worst")
    print(f"every weight of the model is exactly {f.answers[rounds - 1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
