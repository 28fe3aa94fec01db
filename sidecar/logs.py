"""JSON lines on stderr, configured once."""

from __future__ import annotations

import json
import logging
import sys
import time

from routereplay.sidecar.tracing import LOG_FIELDS

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the trace, and what `extra=` adds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `record` as one line of JSON."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(LOG_FIELDS.get({}))
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def is_news(record: logging.LogRecord) -> bool:
    """Return False for uvicorn's traceback of an error of ours, which stopped the start.

    `create_app` has said what is wrong and what to do in one line.
    """
    text = record.getMessage()
    last = text.rstrip().rpartition("\n")[2]
    return not (text.startswith("Traceback") and last.startswith("routereplay."))


def configure_logging(level: str) -> None:
    """Send everything of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("uvicorn.error").addFilter(is_news)
