"""`fedround participant`: the training code runs in the process or thread that `PARTICIPANT_ISOLATION` selects."""

import os

from fedround.common.settings import Isolation, ParticipantSettings
from fedround.observability import logs
from fedround.participant.naming import named
from fedround.participant.supervisor import Supervisor


def serve_participant(settings: ParticipantSettings) -> int:
    """Run a participant as a service until training is complete, or until SIGTERM or SIGINT. Returns the exit code.

    Raises:
        FedroundError: See `fedround.errors` for the classes and their exit codes.
    """
    settings = named(settings)
    logs.add_fields(participant=settings.name)
    if settings.isolation is Isolation.THREAD:
        from fedround.participant.inside import serve_inside

        serve_inside(settings)
        return os.EX_OK
    name, options = settings.made_from
    recipe = {
        "class": name,
        "options": options,
        "local_tensors": settings.local_tensors,
        "data_dir": settings.data_dir and str(settings.data_dir),
        "name": settings.name,
        "log_format": settings.log_format,
        "log_level": settings.log_level,
    }
    with Supervisor(recipe) as supervisor:
        from fedround.participant.service import serve  # while the worker imports the class

        serve(settings, supervisor)
    return os.EX_OK
