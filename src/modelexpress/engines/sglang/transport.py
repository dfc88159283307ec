"""The transport that SGLang's configuration asks for, as far as it is one of this package's."""

import json
import logging
from collections.abc import Mapping
from typing import Any, get_args

from modelexpress.settings import Settings
from modelexpress.transport.select import available

logger = logging.getLogger(__name__)

_OURS = get_args(Settings.model_fields["transport_first"].annotation)


def with_transport(settings: Settings, load_config: Any, options: Mapping[str, Any]) -> Settings:
    """Return settings with the transport first that the engine was told to use, which wins over MX_TRANSPORT_FIRST.

    Where it does not work here, or is none of this package's, the log says so, and the fastest that works is used.

    Args:
        settings: Those of the environment; with MX_TRANSPORT only that transport is used.
        load_config: SGLang's, which says `nixl` when nobody has chosen, too.
        options: Those of the engine, as it has resolved them, which tell whether somebody has.
    """
    transport = _chosen(load_config, options)
    if not transport:
        return settings
    if transport not in _OURS:
        logger.warning(
            "the transport %r of --modelexpress-config is none of this package's: it uses the fastest of its own that "
            "works here (`mx doctor` lists them)",
            transport,
        )
        return settings
    settings = settings.model_copy(update={"transport_first": transport})
    if reason := _hindrance(transport, settings):
        logger.warning(
            "the transport %r of --modelexpress-config cannot be used here, but the fastest that works: %s",
            transport,
            reason,
        )
    return settings


def _hindrance(transport: str, settings: Settings) -> str | None:
    selection = available(settings)
    for each in selection.transports:
        each.close()
    return dict(selection.reasons).get(transport)


def _chosen(load_config: Any, options: Mapping[str, Any]) -> str:
    """Return the transport that somebody has chosen; "" where nobody has."""
    given = options.get("modelexpress_config")
    if given is None:
        default = load_config.modelexpress_transport == "nixl"
        return "" if default else str(load_config.modelexpress_transport)
    fields = json.loads(given) if isinstance(given, str) else given
    return str(fields.get("transport") or "")
