"""Environments a policy can act in. Only the retail store exists; nothing here imports torch."""
