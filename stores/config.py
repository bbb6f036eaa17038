"""Reading providers.toml."""

from __future__ import annotations

from schemas.errors import ConfigurationError
from schemas.providers import Providers, load_providers
from schemas.settings import Settings


def read_providers(settings: Settings) -> Providers:
    """The providers that ``TAILRACE_PROVIDERS`` configures. Raises ConfigurationError."""
    try:
        text = settings.providers.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"TAILRACE_PROVIDERS: can't read {settings.providers}: {reason}.", param="TAILRACE_PROVIDERS"
        ) from None
    return load_providers(text, source=str(settings.providers))
