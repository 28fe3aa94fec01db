"""The vLLM releases that the recorder knows, and what differs between them.

One code path serves all of them. Where releases differ, the difference is a row here, with
the first release that has it, and the code asks for that row by name: no version number
stands anywhere else. Read in the wheels of 0.22.0 to 0.33.0; `surface.json` has the proof.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TypeAlias

Numbers: TypeAlias = tuple[int, int]
"""`(0, 30)` for every 0.30.x."""

FIRST: Numbers = (0, 22)
"""Before it, rows come in one piece at the end of a request, and not for every ending."""

BEFORE: Numbers = (0, 34)
"""First release whose wheels were not read."""

_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Since:
    """Something that releases have from `first` on."""

    first: Numbers
    what: str


DRAFT_LAYERS_APART = Since(
    (0, 26),
    "The layers of a draft model are not captured. Before, those of MTP and EAGLE drafts "
    "overwrote the target's first layers.",
)
BYPASS_REFUSED = Since(
    (0, 27),
    "The engine refuses to start if a layer's kernel bypasses capture. Before, its rows are "
    "all zero; the canary finds them.",
)
TOPK_OF_CONFIG = Since(
    (0, 28), "`ModelConfig.get_num_experts_per_tok()`. Before, a field of the model's own config."
)
SESSION_ID = Since((0, 28), "`X-Session-ID` and `session_id` reach the engine as the request's.")
PROMPT_START_AT_END = Since(
    (0, 30),
    "`routed_experts_prompt_start` may equal the prompt's length. Before, that ended the "
    "engine for everyone.",
)
AUX_OUTPUT = Since(
    (0, 31),
    "Capture is switched on in `aux_output_config` and needs Model Runner V2 and prefix "
    "caching. Before, in `model_config`.",
)
SURPLUS_TRIMMED = Since(
    (0, 32), "Tokens that speculative decoding brought past a stop string are taken back."
)
WEIGHT_VERSIONS = Since((0, 32), "The engine numbers its weights and says which made a token.")
EXTERNAL_HITS_CAPPED = Since(
    (0, 33),
    "A hit in the cache of a KV connector counts only as far as its rows are there. Before, "
    "one whose rows were gone ended the engine (0.31, 0.32), or any connector did (up to 0.30).",
)
DBO_OFFSET = Since(
    (0, 33),
    "With dual batch overlap each half of a batch has rows of its own. Before, both were "
    "captured into the same.",
)

DIFFERENCES: tuple[Since, ...] = (
    DRAFT_LAYERS_APART,
    BYPASS_REFUSED,
    TOPK_OF_CONFIG,
    SESSION_ID,
    PROMPT_START_AT_END,
    AUX_OUTPUT,
    SURPLUS_TRIMMED,
    WEIGHT_VERSIONS,
    EXTERNAL_HITS_CAPPED,
    DBO_OFFSET,
)


@dataclass(frozen=True, slots=True)
class Release:
    """One release of vLLM."""

    numbers: Numbers

    @classmethod
    def of(cls, version: str) -> Release:
        """Return the release of a version as installed: `0.30.0+cpu` is 0.30.

        A build without a release number (`dev`) is taken for the newest one.
        """
        match = _RELEASE.match(version)
        return cls((int(match[1]), int(match[2])) if match else BEFORE)

    def has(self, difference: Since) -> bool:
        """Whether this release has it."""
        return self.numbers >= difference.first


@functools.cache
def installed_release() -> Release:
    """Return the release of the vLLM in this process."""
    import vllm

    return Release.of(vllm.__version__)


def known_releases() -> tuple[Release, ...]:
    """Return every release in the supported range, oldest first."""
    return tuple(Release((0, minor)) for minor in range(FIRST[1], BEFORE[1]))
