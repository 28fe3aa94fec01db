"""The route store service: FastAPI in front of Redis or Valkey."""
