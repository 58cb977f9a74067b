"""The one exception of the control boundary."""

from __future__ import annotations

from ringway.control.messages import Cause, ErrorReply
from ringway.control.names import printable


class ControlError(Exception):
    """A request that could not be made or was refused; `cause` is the broker's own when it answered."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message

    def reply(self) -> ErrorReply:
        return ErrorReply(cause=self.cause, message=printable(self.message))
