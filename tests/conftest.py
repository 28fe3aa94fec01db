"""Which tests run one after the other, because what they share is expensive to start."""

import re

import pytest

RELEASE_OF_MEGATRON = re.compile(r"megatron_replay/.*[\[-](\d+\.\d+\.\d+)[-\]]")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By file, or by release of Megatron-Core: each is imported in one process of its own."""
    from xdist.scheduler import LoadFileScheduling

    class ByWhatIsShared(LoadFileScheduling):
        def _split_scope(self, nodeid):
            release = RELEASE_OF_MEGATRON.search(nodeid)
            return release[1] if release else super()._split_scope(nodeid)

    return ByWhatIsShared(config, log) if config.getvalue("dist") == "loadfile" else None
