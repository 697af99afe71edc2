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

__all__ = [
    "Conversation",
    "Customer",
    "CustomerTurn",
    "Limits",
    "Message",
    "Policy",
    "Termination",
    "play",
]
