"""Roles: whether a worker takes its weights from a peer, or offers them."""

from enum import Enum

from modelexpress.settings import Settings


class Role(Enum):
    """What a worker is told to be."""

    SOURCE = "source"
    """It loads natively, and offers its weights."""
    TARGET = "target"
    """It takes its weights from a peer or fails, and offers none."""
    FOUND_OUT = "found out"
    """It is a target where there is a source, else it becomes one."""


def role_of(settings: Settings) -> Role:
    """Return the role that the environment gives; MODEL_EXPRESS_TARGET wins over MODEL_EXPRESS_SOURCE."""
    if settings.express_target:
        return Role.TARGET
    return Role.SOURCE if settings.express_source else Role.FOUND_OUT


def offers_weights(settings: Settings) -> bool:
    """Return whether a worker that has its weights offers them.

    A target does not. One that is told to be a source does, at the registry that settings have where none is named;
    any other one, where a registry is named.
    """
    role = role_of(settings)
    return role is Role.SOURCE or (role is Role.FOUND_OUT and "registry" in settings.model_fields_set)
