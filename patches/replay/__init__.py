"""Replay without a host: staging, accounting and canary, shared by Megatron-Core and transformers.

Empty on purpose: the packages of the hosts export what their users need.
"""
