"""The agent beside an appliance: attaches its ports and runs the stack on them."""

from ringway.agent.agent import Agent
from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.port import Port
from ringway.shm import Frame, GsoType, Offload

__all__ = ["Agent", "AgentCause", "AgentError", "Frame", "GsoType", "Offload", "Port"]
