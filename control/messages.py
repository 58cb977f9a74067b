"""Every message that broker, agents and command line exchange: the only list.

    sender            message        answered with
    command line      Apply          Applied
                      PlanRequest    Planned
                      Show           Shown
    agent             Hello          Welcome
                      Notice         (nothing)
    broker to agent   Offered        Done
                      Withdrawn      Done
                      SetStack       Done
                      SetPort        Done
                      StatusRequest  Status
    agent, handover   Claim          Grant, with descriptors
    broker, handover  Peer           (nothing), with a descriptor

Any request may be answered with ErrorReply instead. A field that has its default is not sent (omit_defaults).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from ringway.control.carriers import Carriers
from ringway.control.kinds import Settings
from ringway.control.names import Name, PlainName
from ringway.control.rules import Stack

# Line breaks and tabs pass, terminal control codes do not: the text is printed by other people's terminals.
Text = Annotated[str, Meta(max_length=8192, pattern=r"\A[^\x00-\x08\x0b-\x1f\x7f-\x9f]*\Z")]
Word = Annotated[str, Meta(max_length=128, pattern=r"\A[ -~]*\Z")]
Sentence = Annotated[str, Meta(max_length=512, pattern=r"\A[ -~]*\Z")]
Uint = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PID_MAX: Final = 1 << 22  # PID_MAX_LIMIT of the kernel
Pid = Annotated[int, Meta(ge=0, le=PID_MAX)]  # an agent's own word, which others are shown: no more than one can be
Side = Annotated[int, Meta(ge=0, le=1)]
TicketText = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Counters = dict[Word, int]
WhenFull = Literal["wait", "drop"]  # what a producer does with frames that find no room

ENDS_MAX: Final = 4096  # that an agent may say it is attached to


class Cause(StrEnum):
    """Why a request was refused, or could not be made at all."""

    NO_BROKER = "no_broker"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"  # the other end said something that makes no sense here
    RUNTIME = "runtime"  # the runtime directory cannot be used
    BAD_MESSAGE = "bad_message"
    VERSION = "version"  # the two sides are of different releases
    BAD_FABRIC = "bad_fabric"
    LIMIT = "limit"  # more than this host or this broker can give
    SYSTEM = "system"  # the operating system refused
    UNKNOWN_VM = "unknown_vm"
    AGENT_EXISTS = "agent_exists"
    NOT_GREETED = "not_greeted"  # an agent's message from a peer that has not said hello
    TICKET_WRONG = "ticket_wrong"
    TICKET_USED = "ticket_used"
    TICKET_EXPIRED = "ticket_expired"
    TICKET_MISMATCH = "ticket_mismatch"  # a good ticket, for another VM, link or side
    ALREADY_ATTACHED = "already_attached"
    BUSY = "busy"
    FAILED = "failed"  # an agent could not do what it was asked


class Message(Struct, forbid_unknown_fields=True):
    """Base of everything in KINDS."""


class Part(Struct, forbid_unknown_fields=True):
    """Base of what messages are made of."""


class GeometryPart(Part):
    """struct rway_geometry; sizes in bytes."""

    queues: Uint
    slot_count: Uint
    slot_payload: Uint
    headroom: Uint


class Offer(Part, omit_defaults=True):
    """One end of a link, for its VM's agent to take with the ticket, by the carrier."""

    link: Name
    link_id: Uint
    port: PlainName
    side: Side
    incarnation: Uint
    geometry: GeometryPart
    settings: Settings
    carrier: Carriers
    ticket: TicketText
    full: WhenFull | None = None  # None: the port's producer waits if it can


class PortStatus(Part):
    port: PlainName
    link: Name
    state: Literal["attached", "broken", "failed"]  # failed: not attached, or what the agent is to run over it does not
    cause: Sentence = ""
    full: WhenFull | None = None  # what the agent does when the port's ring is full; None: an application decides


class LoopStatus(Part):
    name: Word
    counters: Counters = {}


class FunctionStatus(Part):
    """What a packet function has counted, by its own names."""

    name: Word
    counters: Counters = {}
    sha256: Word = ""  # of the file that it was loaded from; a built-in one has none


class RuleCount(Part):
    name: Name
    frames: int
    bytes: int


class UnparsedCount(Part):
    """Frames whose headers could not be judged for this cause (enum rway_malformed)."""

    cause: Word
    dropped: int
    passed: int


class Connections(Part):
    """What a filter remembers; see ringway.stack.filter.Connections."""

    places: int
    in_use: int
    made: int
    replaced: int
    refused: int


class EndShown(Part):
    vm: PlainName
    port: PlainName
    settings: Settings
    state: Literal["detached", "attached", "broken", "unreadable"]
    cause: Word
    incarnation: int
    queues_served: int
    held: bool  # an agent holds the end's descriptors
    pid: Uint = 0  # of its process, while it is held


class RingShown(Part):
    """The books of one ring. Exact when both ends are quiet: offered = delivered + in_flight + dropped."""

    producing_side: Side
    queue: Uint
    offered: int
    published: int
    delivered: int
    in_flight: int
    drops_produced: Counters
    drops_consumed: Counters
    balanced: bool  # published = taken out + in_flight
    produced: Counters  # bytes, bells, sleeps, bells_idle, mutes
    consumed: Counters


class LinkShown(Part):
    name: Name
    link_id: Uint
    state: Literal["up", "half", "down", "broken", "lost"]  # lost: its memory is not the broker's any more
    ends: list[EndShown]
    geometry: GeometryPart
    frame_max: Uint
    memory: Uint
    pages: Literal["ordinary", "huge"]
    note: Text
    rings: list[RingShown]


class VmShown(Part):
    name: PlainName
    state: Literal["present", "silent", "away"]
    pid: int | None
    version: Word
    problem: Text  # what its agent fails to do, or last failed to do
    ports: list[PortStatus]
    loops: list[LoopStatus]
    rules: list[RuleCount]
    connections: Connections | None = None  # None: its filter judges each frame alone, or there is none
    unparsed: list[UnparsedCount] = []
    functions: list[FunctionStatus] = []


class Hello(Message, omit_defaults=True):
    vm: PlainName
    pid: Pid
    version: Word  # RELEASE, which has to be the broker's
    attached: Annotated[list[Uint], Meta(max_length=ENDS_MAX)] = []  # link ids, when it is not its first hello


class Welcome(Message):
    vm: PlainName
    offers: list[Offer]
    stack: Stack | None


class Notice(Message):
    """Something an agent tells unasked, about one of its ports."""

    port: PlainName
    link: Name
    event: Word
    cause: Sentence = ""


class Offered(Message):
    offer: Offer


class Withdrawn(Message, omit_defaults=True):
    link: Name
    link_id: Uint
    port: PlainName
    replaced: bool = False  # the port is offered again, with another link: its interface stays


class SetPort(Message):
    """A port has other settings from now on; its link stays."""

    port: PlainName
    link_id: Uint
    settings: Settings
    full: WhenFull | None


class SetStack(Message):
    stack: Stack | None


class StatusRequest(Message):
    pass


class Done(Message):
    pass


class Status(Message, omit_defaults=True):
    ports: list[PortStatus]
    loops: list[LoopStatus]
    rules: list[RuleCount]
    connections: Connections | None = None
    unparsed: list[UnparsedCount] = []
    functions: list[FunctionStatus] = []
    problem: Text = ""  # why its stack does not run, or not as the broker said


class Apply(Message):
    name: Text  # of the file, for messages
    text: str


class AgentFailed(Part):
    """An agent could not run what was applied."""

    vm: PlainName
    cause: Text


class Applied(Message, omit_defaults=True):
    made: list[Name]
    removed: list[Name]
    replaced: list[Name]
    kept: list[Name]
    notes: list[Text]
    silent: list[PlainName] = []  # VMs whose agents have not answered in time; they may still do what they were told
    failed: list[AgentFailed] = []


class PlanRequest(Message):
    """What would Apply do with this text?"""

    name: Text
    text: str


class Replacement(Part):
    """A link that stays in name only: its frames in flight are lost."""

    link: Name
    reason: Text
    in_flight: Uint  # frames in its rings at the moment


class Planned(Message):
    made: list[Name]
    removed: list[Name]
    replaced: list[Replacement]
    kept: list[Name]
    stacks: list[PlainName]  # VMs whose rules change, without a frame lost
    memory: int  # bytes more than now
    notes: list[Text] = []
    ports: list[Word] = []  # whose settings change, likewise


class Show(Message):
    pass


class Shown(Message):
    links: list[LinkShown]
    vms: list[VmShown]


class Claim(Message):
    vm: PlainName
    link: Name
    side: Side
    ticket: TicketText


class Grant(Message):
    """A second one on the same connection: the broker died before it knew that the first one was sent."""

    link_id: Uint
    geometry: GeometryPart
    incarnation: Uint


class Peer(Message):
    """Who holds the other end; the descriptor with it hangs up (POLLHUP) when that incarnation lets go or dies."""

    incarnation: Uint


class ErrorReply(Message):
    cause: Cause
    message: Text


TO_BROKER: Final[tuple[type[Message], ...]] = (Hello, Notice, Apply, PlanRequest, Show, Done, Status, ErrorReply)
FROM_BROKER: Final[tuple[type[Message], ...]] = (
    *(Welcome, Applied, Planned, Shown, ErrorReply),
    *(Offered, Withdrawn, SetStack, SetPort, StatusRequest),
)
PUSHED: Final[tuple[type[Message], ...]] = (Offered, Withdrawn, SetStack, SetPort, StatusRequest)
TO_HANDOVER: Final[tuple[type[Message], ...]] = (Claim,)
FROM_HANDOVER: Final[tuple[type[Message], ...]] = (Grant, Peer, ErrorReply)
KINDS: Final[dict[str, type[Message]]] = {
    kind.__name__: kind for kind in (*TO_BROKER, *FROM_BROKER, *TO_HANDOVER, *FROM_HANDOVER)
}
