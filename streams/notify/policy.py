"""``[notify.NAME]``: one notifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

HTTP_KINDS = ("webhook", "slack", "alertmanager")
SMTP_SCHEMES = ("smtp://", "smtp+starttls://", "smtps://")


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class NotifierConfig(BaseModel):
    """``[notify.NAME]``: whom to tell of which alerts, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["webhook", "slack", "alertmanager", "email", "file"] = Field(description="how it is told")
    url: SecretStr | None = Field(
        default=None,
        description="http(s) URL; of an Alertmanager its root; of email smtp://, smtp+starttls:// or smtps://[USER@]HOST",
    )
    path: Path | None = Field(default=None, description="kind file: one JSON object a line is appended")
    secret: SecretStr | None = Field(
        default=None, description="kind webhook: signs the body (HMAC-SHA256); kind email: the password"
    )
    sender: str | None = Field(default=None, description="kind email: From")
    to: tuple[str, ...] = Field(default=(), description="kind email: To")
    severities: tuple[Literal["info", "warn", "page", "critical"], ...] = Field(
        default=("page", "critical"), description="only alerts of these severities"
    )
    states: tuple[Literal["opened", "extended", "closed"], ...] = Field(
        default=("opened", "extended", "closed"), description="what of an incident is told"
    )
    models: tuple[str, ...] = Field(default=(), description="only of these models; default: all, and the plane")
    timeout_s: Annotated[float, Field(gt=0, le=60)] = Field(default=10.0, description="of one attempt")

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        url = self.url.get_secret_value() if self.url is not None else ""
        if self.kind in HTTP_KINDS and not url.startswith(("http://", "https://")):
            raise ValueError(f"a notifier of kind '{self.kind}' needs an http(s) 'url'")
        if self.kind == "email" and not (url.startswith(SMTP_SCHEMES) and self.sender and self.to):
            raise ValueError(f"a notifier of kind 'email' needs 'sender', 'to' and a 'url' ({', '.join(SMTP_SCHEMES)})")
        if self.kind != "file" and not _names_a_host(url):
            raise ValueError("its 'url' names no host, or a port that there is not")
        if self.kind == "file" and self.path is None:
            raise ValueError("a notifier of kind 'file' needs a 'path'")
        return self

    def wants(self, severity: str, state: str, model: str) -> bool:
        """Whether it tells of such an alert."""
        return severity in self.severities and state in self.states and (not self.models or model in self.models)
