"""The base class of all settings, and their rows in help and documentation."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, SecretStr, ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fedround.common.settings.types import LogFormat, LogLevel


def setting(default: Any, description: str, **constraints: Any) -> Any:
    """Return a field for a setting. Write the default as users write values, for example "10s": it is parsed in the same way."""
    return Field(default, description=description, validate_default=True, **constraints)


def for_operators_only(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Return the operators' token. Raises `ValueError` if it is also the participants' token."""
    if value is not None and value == info.data.get("token"):
        raise ValueError("participants have the same token: operators need a different one")
    return value


class Row(NamedTuple):
    """A setting in help and documentation."""

    name: str
    variable: str
    kind: str
    default: str
    description: str

    def flag(self, *, long: bool = False) -> str:
        """Return the flag: `--port`, or with `long`, for commands of two services, `--coordinator-port`."""
        return "--" + (self.variable.lower() if long else self.name.rstrip("_")).replace("_", "-")


class Settings(BaseSettings):
    """The settings that all services have. Instances are frozen, and get their values only from keyword arguments."""

    # `defer_build`: a process uses the settings of one service, and building those of the others takes 15 ms of its start.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the keyword arguments. `sources.load` reads the other sources, with better messages."""
        return (init_settings,)

    prefix: ClassVar[str]
    file_keys: ClassVar[Mapping[str, str]] = {}
    """The field for each key of a 0.8 file."""

    log_format: LogFormat = setting("text", "Format of log lines: plain text, or one JSON object per line.")
    log_level: LogLevel = setting("info", "Minimum level of log lines.")

    @classmethod
    def rows(cls) -> Iterator[Row]:
        """Yield all settings, those of this service first. Each secret is followed by the setting for its file."""
        for name, field in sorted(cls.model_fields.items(), key=lambda item: item[0] not in cls.__annotations__):
            prefix = "FEDROUND" if name.startswith("internal_secret") else cls.prefix
            variable = f"{prefix}_{name.rstrip('_').upper()}"
            default = "" if field.default is None or field.is_required() else str(field.default)
            default = default.lower() if isinstance(field.default, bool) else default
            yield Row(name, variable, field.title or "text", default, field.description or "")
            if field.title == "secret" and f"{name}_file" not in cls.model_fields:
                yield Row(f"{name}_file", f"{variable}_FILE", "path", "", "File that holds this secret.")
