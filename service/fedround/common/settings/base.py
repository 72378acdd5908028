"""What the settings of all services have in common."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, SecretStr, ValidationInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fedround.common.settings.types import LogFormat, LogLevel


def setting(default: Any, description: str, **constraints: Any) -> Any:
    """A field; its default is what a person would write, and is parsed like what a person wrote."""
    return Field(default, description=description, validate_default=True, **constraints)


def for_operators_only(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    if value is not None and value == info.data.get("token"):
        raise ValueError("participants have the same token: operators need a different one")
    return value


class Row(NamedTuple):
    """One setting, as help and documentation show it."""

    name: str
    variable: str
    kind: str
    default: str
    description: str

    def flag(self, *, long: bool = False) -> str:
        """`--port`, or where two services' settings meet, `--coordinator-port`."""
        return "--" + (self.variable.lower() if long else self.name.rstrip("_")).replace("_", "-")


class Settings(BaseSettings):
    """What the three have in common. Frozen; made from keyword arguments, they read nothing else."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments alone: the other sources are `load`'s, which is told the environment and names both ways to set a thing."""
        return (init_settings,)

    prefix: ClassVar[str]
    file_keys: ClassVar[Mapping[str, str]] = {}
    """The field for a key of a 0.8 file."""

    log_format: LogFormat = setting("text", "Format of log lines: plain text, or one JSON object per line.")
    log_level: LogLevel = setting("info", "Minimum level of log lines.")

    @classmethod
    def rows(cls) -> Iterator[Row]:
        """Every setting, first those that only this service has; a secret is followed by the file that may hold it."""
        for name, field in sorted(cls.model_fields.items(), key=lambda item: item[0] not in cls.__annotations__):
            prefix = "FEDROUND" if name.startswith("internal_secret") else cls.prefix
            variable = f"{prefix}_{name.rstrip('_').upper()}"
            default = "" if field.default is None or field.is_required() else str(field.default)
            default = default.lower() if isinstance(field.default, bool) else default
            yield Row(name, variable, field.title or "text", default, field.description or "")
            if field.title == "secret" and f"{name}_file" not in cls.model_fields:
                yield Row(f"{name}_file", f"{variable}_FILE", "path", "", "File that holds this secret.")
