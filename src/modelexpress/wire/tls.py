"""TLS of the control plane: which files prove who a process is, and whom it believes."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from modelexpress.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """Files of a server, in PEM.

    Args:
        certificate: The server's certificate chain.
        key: Its private key.
        client_ca: Authorities of client certificates; when set, a client without one is refused (mTLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a gRPC server binds a port with.

        Raises:
            ConfigurationError: A file cannot be read.
        """
        client_ca = None if self.client_ca is None else _read(self.client_ca)
        pair = (_read(self.key), _read(self.certificate))
        return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Files of a client, in PEM.

    Args:
        ca: Authorities of server certificates; those of the system when None.
        certificate: The client's own certificate chain, for servers that ask for one.
        key: Its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a gRPC channel is opened with.

        Raises:
            ConfigurationError: A file cannot be read, or only one of certificate and key is given.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("a client certificate and its key are given together or not at all")
        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca is None else _read(self.ca),
            private_key=None if self.key is None else _read(self.key),
            certificate_chain=None if self.certificate is None else _read(self.certificate),
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the TLS file {path} cannot be read: {error.strerror}") from error
