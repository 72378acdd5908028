"""`PARTICIPANT_ISOLATION=thread`: the training code runs on the main thread of the service's process."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedround import events
from fedround.common import exiting
from fedround.common.settings import ParticipantSettings
from fedround.errors import FedroundError
from fedround.events import Observer
from fedround.participant import local
from fedround.participant.abc import ParticipantABC
from fedround.participant.load import load_participant
from fedround.participant.measuring import Measuring
from fedround.participant.operators import OpsPort
from fedround.participant.runtime import GRACE, Runtime
from fedround.participant.service import serve
from fedround.participant.training import Training

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)


class InProcess(Training):
    """The `ServiceTrainer` that trains in this process. It is ready once created."""

    make_sink = None

    def __init__(self, participant: ParticipantABC[Any, Any]) -> None:
        # `sys.exit()` is a failure of the training code: no other code of this service calls it.
        super().__init__(participant, lambda _fact: None, failures=(Exception, SystemExit))

    def attach(self, observe: Observer, traceparent: Callable[[], str | None]) -> None:
        """See `ServiceTrainer`. Spans in this process need no `traceparent`."""
        self._observe, self._measuring = observe, Measuring(observe)
        observe(events.WorkerReady())

    def started(self, within: float | None = None) -> bool:
        """See `ServiceTrainer`."""
        return True

    def interrupt(self) -> None:
        """See `ServiceTrainer`."""

    def status(self) -> Mapping[str, object]:
        """See `ServiceTrainer`."""
        return {"state": "in this process"}


def serve_inside(settings: ParticipantSettings) -> None:
    """See `serve`."""
    with _exit_despite_threads():
        participant = load_participant(*settings.made_from)
        with local.persisted(participant, settings.local_tensors, settings.data_dir):
            serve(settings, InProcess(participant), _exit_without_training_code)


@contextmanager
def _exit_without_training_code(runtime: Runtime, ops_port: OpsPort, traces: "Tracing | None") -> Iterator[None]:
    """End the process when only the training code still runs, which cannot be interrupted."""

    def watch() -> None:
        runtime.ended.wait()
        if runtime.returned.wait(GRACE):
            return
        LOG.warning("the training code does not return: exiting without it")
        code = os.EX_OK
        try:
            ops_port.check()
            runtime.result()
        except BaseException as error:
            LOG.error("%s", error, exc_info=not isinstance(error, FedroundError))
            code = _exit_code(error)
        if traces is not None:
            traces.close()
        exiting.exit_now(code)

    threading.Thread(target=watch, name="fedround-exit", daemon=True).start()
    yield


@contextmanager
def _exit_despite_threads() -> Iterator[None]:
    """End the process with its exit code, even if threads of the training code do not end."""
    code = os.EX_OK
    try:
        yield
    except BaseException as error:
        code = _exit_code(error)
        raise
    finally:
        exiting.exit_after_grace(code)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return error.exit_code if isinstance(error, FedroundError) else 1
