"""Names of the registry's service and methods."""

from modelexpress.wire import p2p_pb2

SERVICE_NAME = p2p_pb2.DESCRIPTOR.services_by_name["P2pService"].full_name


def method(name: str) -> str:
    """Return the path of a method of the registry, as gRPC addresses it."""
    return f"/{SERVICE_NAME}/{name}"
