"""The metrics of the certificates that a service uses."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from fedround.http.certificates import Validity

_FAMILIES = {
    "not_before": "Start of the certificate's validity, in Unix time. setting: the setting that names its file.",
    "not_after": "End of the certificate's validity, in Unix time. If a file has several certificates: the one that ends first.",
}


class Certificates(Collector):
    """The validity of certificates. It is read at each scrape, since files may have changed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._found: list[Callable[[], Mapping[str, Validity]]] = []
        registry.register(self)

    def watch(self, validity: "Callable[[], Mapping[str, Validity]]") -> None:
        """Show what `validity` returns (see `Context.validity`) from now on."""
        self._found.append(validity)

    def collect(self) -> Iterator[Metric]:
        """Return both families. Without TLS they have no samples."""
        found = {setting: validity for each in self._found for setting, validity in each().items()}
        for name, help in _FAMILIES.items():
            family = GaugeMetricFamily(f"fedround_tls_certificate_{name}_timestamp_seconds", help, labels=["setting"])
            for setting, validity in found.items():
                family.add_metric([setting.partition(" ")[0]], getattr(validity, name))  # without the name of an argument
            yield family
