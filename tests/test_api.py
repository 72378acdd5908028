import subprocess
import sys

import fedround
from fedround import errors


def test_the_public_names_are_sorted_and_complete() -> None:
    assert fedround.__all__ == sorted(fedround.__all__)
    assert dir(fedround) == fedround.__all__
    for name in fedround.__all__:
        assert callable(getattr(fedround, name))
    assert not hasattr(fedround, "nonsense")


def test_every_error_that_the_library_raises_is_public() -> None:
    public = {name for name in fedround.__all__ if hasattr(errors, name)}
    tree: set[type] = {errors.FedroundError, errors.ParticipantError, *errors.ParticipantError.__subclasses__()}
    assert {kind.__name__ for kind in tree} <= public


def test_importing_fedround_imports_nothing_big() -> None:
    """A coordinator also imports `fedround`, and needs neither NumPy nor httpx."""
    program = "import fedround, sys; sys.exit(bool({'numpy', 'httpx', 'pydantic', 'starlette'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_fedround_testing_needs_no_further_import() -> None:
    program = "import fedround; fedround.testing.platform"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
