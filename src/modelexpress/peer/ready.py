"""Readiness: what tells that an engine serves, so that its weights are tried and its caches complete."""

import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from modelexpress.errors import ConfigurationError

Probe = Callable[[], str]
"""Returns "" when the engine is ready now, else why it is not. Nothing that was seen earlier counts."""

PROBE_SECONDS = 2.0
"""The longest that one question may take: whoever stops the waiting does not wait longer than this."""

_FIRST_RETRY = 0.1
_LAST_RETRY = 5.0
_SCHEMES = ("http", "https")
_chance = random.Random()
"""Apart from the generator of the process, whose numbers an engine may have to repeat."""


class UrlProbe:
    """Asks a readiness URL; any answer from 200 to 299 means ready.

    Proxies of the environment are not used: the engine is on this host, or near.

    Args:
        url: http or https; redirects may not leave these.

    Raises:
        ConfigurationError: It is none.
    """

    def __init__(self, url: str) -> None:
        check_readiness_url(url)
        self._url = url
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _SameSchemes(),
        ):
            self._opener.add_handler(handler)

    def __call__(self) -> str:
        """Ask once."""
        try:
            with self._opener.open(self._url, timeout=PROBE_SECONDS) as answer:
                return "" if 200 <= answer.status < 300 else f"{self._url} answered {answer.status}"
        except urllib.error.HTTPError as error:
            with error:
                return f"{self._url} answered {error.code}: {error.reason}"
        except (OSError, HTTPException, ValueError) as error:
            return f"{self._url} does not answer: {getattr(error, 'reason', error)}"


def check_readiness_url(url: str) -> None:
    """Refuse a URL that cannot tell whether an engine is ready.

    Raises:
        ConfigurationError: It is not http or https, or names no host.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"MX_ARTIFACT_READY_URL={url!r} is no readiness URL: use http://HOST:PORT/PATH or https://HOST:PORT/PATH"
        )


def wait_until_ready(probe: Probe, timeout: float, stop: threading.Event) -> str:
    """Ask again and again, less and less often, until the engine is ready.

    Args:
        probe: Asks once.
        timeout: Seconds until this gives up.
        stop: Set from another thread to give up at once.

    Returns:
        "" when it is ready, else why the waiting has ended.
    """
    deadline, retry = time.monotonic() + timeout, _FIRST_RETRY
    while not stop.is_set():
        reason = probe()
        if not reason:
            return ""
        left = deadline - time.monotonic()
        if left <= 0:
            return f"not ready after {timeout:g} s (MX_ARTIFACT_READY_TIMEOUT_SECS): {reason}"
        # Random, so that the ranks of a pod do not ask in step.
        stop.wait(min(left, retry * _chance.uniform(0.5, 1.0)))
        retry = min(2 * retry, _LAST_RETRY)
    return "it was stopped before the engine was ready"


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only: another scheme would read files, or speak to other services."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request that follows a redirect."""
        if urlsplit(newurl).scheme not in _SCHEMES:
            raise urllib.error.HTTPError(req.full_url, code, f"it redirects to {newurl[:200]!r}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
