"""Close connections on which no request arrives in time, so that slow clients don't hold them forever."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = {
    "code": "SERVE-TIME",
    "what": "the request headers did not arrive in time",
    "where": None,
    "fix": "send them at once",
}


class TimedConnection(H11Protocol):
    """A connection that ends `seconds` after it was opened, or answered last, unless all headers of the next request
    are there by then. uvicorn itself waits for these without end, and so it does for the rest of a body whose request
    was answered already. From its headers on a request is limited by the service.
    """

    seconds = 30.0
    deadline: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the wait ends with the last of the headers."""
        super().data_received(data)
        if self._has_request():
            self.deadline.cancel()

    def on_response_complete(self) -> None:
        """Start to wait for the next request, unless it is there already."""
        super().on_response_complete()
        self.deadline.cancel()
        if not self._has_request():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self.deadline.cancel()
        super().connection_lost(exc)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self.deadline = self.loop.call_later(self.seconds, self._close)

    def _close(self) -> None:
        """Close; who has sent a part of the headers gets a 408 before."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            body = json.dumps({"error": LATE}).encode()
            head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def timed_connection(seconds: float) -> type[TimedConnection]:
    """`TimedConnection` with its own limit, in the form that uvicorn's setting `http` expects."""
    return type("TimedConnection", (TimedConnection,), {"seconds": seconds})
