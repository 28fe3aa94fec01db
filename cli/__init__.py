"""The `routereplay` command: the one place that sees every house."""
