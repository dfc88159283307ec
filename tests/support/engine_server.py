"""A real HTTP server that answers as an engine's health page does: it is started, told what to say, and stopped."""

import http.server
import ssl
import threading
from types import TracebackType
from typing import Self


class EngineServer:
    """Answers every GET with `status`, and with `location` where it redirects; a context manager.

    Args:
        port: The one to bind; 0: any that is free.
        tls: Makes it speak HTTPS.
    """

    def __init__(self, status: int = 503, location: str = "", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.status = status
        self.location = location
        self.asked = 0
        self._heard = threading.Condition()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}/health"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def wait_asked(self, times: int, timeout: float = 20.0) -> None:
        """Wait until so many questions have come."""
        with self._heard:
            assert self._heard.wait_for(lambda: self.asked >= times, timeout), f"only {self.asked} questions came"

    def stop(self) -> None:
        """Close the port, as an engine that ends does."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(engine.status)
                if engine.location:
                    self.send_header("Location", engine.location)
                with engine._heard:
                    engine.asked += 1
                    engine._heard.notify_all()
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler
