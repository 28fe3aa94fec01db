"""The route store against the floor and against what one would use instead."""
