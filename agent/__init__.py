"""The agent beside an appliance: attaches its ports and runs the stack on them."""

from ringway.agent.agent import Agent
from ringway.agent.errors import AgentCause, AgentError
from ringway.agent.port import Port

__all__ = ["Agent", "AgentCause", "AgentError", "Port"]
