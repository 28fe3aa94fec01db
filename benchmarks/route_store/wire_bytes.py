"""What conversations put on the wire, over their rows: `python -m route_store.wire_bytes`.

Exact: all frames of the recorder, counted and not sent.
"""

from __future__ import annotations

from route_store import data

CONVERSATIONS = ((10, 200), (10, 2005), (30, 1000), (50, 640))
"""Turns, and new tokens of each."""


def main() -> None:
    """Print a row for each conversation."""
    print("| turns | new tokens of each | x rows, all frames | of which token ids |")
    print("|---|---|---|---|")
    for turns, new_tokens in CONVERSATIONS:
        sent = ids = 0
        for number, turn in enumerate(data.conversation(turns, new_tokens)):
            for frame in data.frames(turn, f"chatcmpl-{number:032}", "conversation"):
                sent += sum(memoryview(part).nbytes for part in frame)
            ids += 4 * len(turn.tokens)
        unique = turns * new_tokens * data.ROW_NBYTES
        print(f"| {turns} | {new_tokens} | {sent / unique:.3f} | {ids / unique:.3f} |")


if __name__ == "__main__":
    main()
