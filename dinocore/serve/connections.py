"""Close connections on which no request arrives in time, so that slow clients don't hold them open forever."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

TIMEOUT_ERROR = {
    "code": "SERVE-TIME",
    "what": "the request headers did not arrive in time",
    "where": None,
    "fix": "send them at once",
}


class TimedConnection(H11Protocol):
    """A connection that is closed if no complete request headers arrive for `seconds`.

    The time counts from when it was opened or from the last response. uvicorn itself would wait forever, both for
    headers and for the rest of a body whose request has already been answered. Once its headers have arrived, a request
    is limited by the service.
    """

    seconds = 30.0
    deadline: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Receive data; complete headers stop the timer."""
        super().data_received(data)
        if self._has_request():
            self.deadline.cancel()

    def on_response_complete(self) -> None:
        """Restart the timer for the next request, unless that has already arrived."""
        super().on_response_complete()
        self.deadline.cancel()
        if not self._has_request():
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self.deadline.cancel()
        super().connection_lost(exc)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self.deadline = self.loop.call_later(self.seconds, self._close)

    def _close(self) -> None:
        """Close the connection, after a 408 response if part of the headers has arrived."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            body = json.dumps({"error": TIMEOUT_ERROR}).encode()
            head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def timed_connection(seconds: float) -> type[TimedConnection]:
    """A `TimedConnection` class with this limit, for uvicorn's `http` setting."""
    return type("TimedConnection", (TimedConnection,), {"seconds": seconds})
