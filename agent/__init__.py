"""Agent mode: conversations with a customer, and the scripted sides of them."""

from agent.conversation import (
    Conversation,
    Customer,
    CustomerTurn,
    Limits,
    Message,
    Policy,
    Termination,
    play,
)
from agent.customers import ScriptedCustomer
from agent.policies import ScriptedPolicy, scripted_policy

__all__ = [
    "Conversation", "Customer", "CustomerTurn", "Limits", "Message", "Policy", "ScriptedCustomer",
    "ScriptedPolicy", "Termination", "play", "scripted_policy",
]
