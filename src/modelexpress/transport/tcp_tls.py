"""The encryption of connections between workers, as the settings ask for it."""

import ssl

from modelexpress.errors import ConfigurationError
from modelexpress.settings import Settings


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what a source encrypts with; None where no certificate is set.

    Raises:
        ConfigurationError: A file cannot be used, or one of certificate and key is missing.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if not certificate and not key:
        return None
    if not (certificate and key):
        raise ConfigurationError("MX_TLS_CERT and MX_TLS_KEY are set together or not at all")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password, though none fits: without one OpenSSL would ask the terminal for it, and wait.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        problem = f"the TLS files {certificate} and {key} cannot be used: {error}; check MX_TLS_CERT and MX_TLS_KEY"
        raise ConfigurationError(problem) from error
    return context


def client_context(settings: Settings) -> ssl.SSLContext | None:
    """Return how a target checks sources that encrypt; None where neither authorities nor a certificate are set.

    A certificate alone leaves the authorities of the system to decide, as towards a registry.

    Raises:
        ConfigurationError: The file of authorities cannot be used.
    """
    if not (settings.tls_ca or settings.tls_cert):
        return None
    try:
        return ssl.create_default_context(cafile=settings.tls_ca or None)
    except OSError as error:
        raise ConfigurationError(f"the TLS file {settings.tls_ca} cannot be used: {error}; check MX_TLS_CA") from error
