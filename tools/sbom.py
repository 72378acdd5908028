"""A CycloneDX SBOM of a release: the locked Python packages, and the packages of an image's system."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LICENSES = LicenseFactory()


def locked(lock: str, environment: Mapping[str, str] | None = None) -> dict[str, Requirement]:
    """Return the pins of a lock with their lines. With an `environment`, only those that are installed there."""
    blocks = re.findall(r"^[a-z0-9].*\n(?:[ \t]+.*\n?)*", lock, re.MULTILINE)
    found = {block: Requirement(re.split(r"\s\\|\s--hash", block, maxsplit=1)[0]) for block in blocks}
    return {
        block: pin
        for block, pin in found.items()
        if environment is None or pin.marker is None or pin.marker.evaluate(dict(environment))
    }


def sbom(project: Mapping[str, Any], pins: Iterable[Requirement], packages: Iterable[Component], epoch: int) -> str:
    """Return the SBOM as JSON: the same text for the same components.

    Args:
        project: The table `project` of pyproject.toml.
        pins: Python packages. Their licences are those of the packages that are installed where this runs.
        packages: Other components, such as those of the image's system.
        epoch: Seconds since 1970, the time of the SBOM.
    """
    name, version, license = (str(project[key]) for key in ("name", "version", "license"))
    direct = [Requirement(text).name for text in project["dependencies"]]
    root = python(name, version, license, ComponentType.APPLICATION)
    parts = [(pin, python(pin.name, str(pin.specifier).removeprefix("=="), _license(pin.name))) for pin in pins]
    bom = Bom(components=[*(part for _, part in parts), *packages])
    tools = ToolRepository(components=[this_component()])
    bom.metadata = BomMetaData(component=root, tools=tools, timestamp=datetime.fromtimestamp(epoch, UTC))
    for needed, component in [(direct, root), *((_needs(pin.name), part) for pin, part in parts)]:
        names = {canonicalize_name(name) for name in needed}
        bom.register_dependency(component, [part for pin, part in parts if canonicalize_name(pin.name) in names])
    bom.serial_number = uuid5(NAMESPACE_URL, " ".join(sorted(str(part.purl) for part in bom.components)) + str(epoch))
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2) + "\n"


def python(name: str, version: str, license: str | None, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    """Return the component of a Python package."""
    purl = PackageURL("pypi", name=canonicalize_name(name), version=version)
    licenses = [LICENSES.make_from_string(license)] if license else []
    return Component(name=name, version=version, type=kind, licenses=licenses, purl=purl, bom_ref=purl.to_string())


def interpreter(version: str) -> Component:
    """Return the component of an image's Python, which no package manager installed."""
    purl = PackageURL("generic", name="python", version=version)
    licenses = [LICENSES.make_from_string("PSF-2.0")]
    return Component(name="python", version=version, licenses=licenses, purl=purl, bom_ref=purl.to_string())


def debian(status: str, release: str) -> list[Component]:
    """Return the installed packages of a dpkg database. `release` is the system's /etc/os-release."""
    of = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', release, re.MULTILINE))
    found = []
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            where = {"arch": fields["Architecture"], "distro": f"{of['ID']}-{of['VERSION_ID']}"}
            purl = PackageURL("deb", of["ID"], fields["Package"], fields["Version"], where)
            found.append(Component(name=fields["Package"], version=fields["Version"], purl=purl, bom_ref=purl.to_string()))
    return found


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:  # for another system or version of Python
        return None


def _license(name: str) -> str | None:
    """Return the license expression of a package, else its license text of one line, else its classifier."""
    found = _installed(name)
    if found is None:
        return None
    texts = [text for key in ("License-Expression", "License") for text in found.metadata.get_all(key, ()) if "\n" not in text]
    classifiers = found.metadata.get_all("Classifier", ())
    return next(iter(texts + [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]), None)


def _needs(name: str) -> list[str]:
    """Return the requirements of an installed package on this system, without extras."""
    found = _installed(name)
    required = map(Requirement, (found.requires or []) if found else [])
    return [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
