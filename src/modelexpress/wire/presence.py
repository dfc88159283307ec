"""Presence: a call to a registry that a worker holds open as long as it lives, beyond `model_express.p2p`.

`modelexpress.registry.v1.Presence/Attend` takes which record it is about, as `GetMetadata` does. The registry answers
one empty message, and then nothing more until one side ends the call. Registries of other makes do not know it.
"""

ATTEND = "/modelexpress.registry.v1.Presence/Attend"
"""Path of the call, as gRPC addresses it."""

SERVICE, METHOD = ATTEND[1:].split("/")
