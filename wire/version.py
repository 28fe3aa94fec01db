"""The version of the frame format and the rule by which it changes.

A reader accepts `WIRE_VERSION` and refuses every other one by name. New optional
header fields do not change the version (readers ignore fields they do not know);
a change of the prefix, of the padding or of a field's meaning does.
"""

WIRE_VERSION = 1
"""Fifth byte of every frame."""

MEDIA_TYPE = "application/vnd.routereplay.routes"
"""Content type of ingest bodies and of route responses."""
