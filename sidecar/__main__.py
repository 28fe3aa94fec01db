"""`python -m routereplay.sidecar`: serve with settings from the environment."""

from __future__ import annotations

from routereplay.sidecar.server import serve
from routereplay.sidecar.settings import Settings

if __name__ == "__main__":
    serve(Settings())
