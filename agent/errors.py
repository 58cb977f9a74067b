"""What an agent cannot do, by name."""

from __future__ import annotations

import enum


class AgentCause(enum.StrEnum):
    NO_TUN = "no_tun"  # the host has no /dev/net/tun, or forbids it
    INTERFACE = "interface"  # a kernel interface could not be made or set up
    SOCKET = "socket"  # a vhost port's socket could not be made
    NAME = "name"  # what no VM can be called
    NO_PORT = "no_port"  # the broker offers no such port
    NOT_LOCAL = "not_local"  # the port is driven by the agent itself, not by an application
    WITHDRAWN = "withdrawn"  # the broker took the port's link away, or the application gave its end back
    STOPPED = "stopped"  # while it was starting
    FORKED = "forked"  # it belongs to the process that this one was forked from


class AgentError(Exception):
    """`cause` says what kind of thing failed; the message what to do."""

    def __init__(self, cause: AgentCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
