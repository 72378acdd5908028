"""The import of objects that settings name, such as `my_package.my_module:MyClass`."""

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from fedround.errors import ConfigurationError


def import_object(what: str, setting: str) -> Any:
    """Import the object that `module:name` names. Search the working directory too.

    Args:
        what: The module and the name, such as `my_package.my_module:MyClass`.
        setting: The setting that names the object, for messages.

    Raises:
        ConfigurationError: The module does not exist, or has no such name.
        Exception: The import of the module failed with another error.
    """
    module, _, name = what.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # If `error` names this module or a package of it, the setting is wrong. Otherwise the module itself has a wrong import.
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise
        where = f"neither in {Path.cwd()} nor installed"
        raise ConfigurationError(f"{setting}: there is no module {error.name}, {where}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            meant = difflib.get_close_matches(part, dir(found), n=1)
            raise ConfigurationError(f"{setting}: {module} has no {name}" + (f": did you mean {meant[0]}?" if meant else ""))
        found = getattr(found, part)
    return found
