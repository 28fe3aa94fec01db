"""What all tests share."""

import re

import pytest
from hypothesis import settings

# Two noisy cores: how long an example takes says nothing of the code.
settings.register_profile("routereplay", deadline=None)
settings.load_profile("routereplay")

_ONE_SERVER = ("tests/e2e/recorder_vllm/", "tests/e2e/whole_path/")
"""Folders whose files share one vLLM server: they stay with one worker, or each would start its
own."""
_OWN_SERVERS = (
    "test_engine_",
    "test_installed",
    "test_refused",
    "test_rust_",
    "test_silent_failures",
)
"""Files of them that start others, or none."""
_MEGATRON = re.compile(r"(tests/e2e/megatron_replay/).*[\[-](\d+\.\d+\.\d+)[-\]]")
"""Tests of it that run in a process with one release of Megatron-Core, which takes seconds to
start: those of a release stay with one worker."""
_LONG = ("tests/e2e/", "tests/browser/", "tests/packaging/", "tests/integration/")
"""Begun first, so that no worker sits before the last long file while the others are done."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist=loadfile`, tests go by server, release or file, the long ones first."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid):
            for folder in _ONE_SERVER:
                name = nodeid.removeprefix(folder)
                if name != nodeid and not name.startswith(_OWN_SERVERS):
                    return folder
            if megatron := _MEGATRON.match(nodeid):
                return "".join(megatron.groups())
            return super()._split_scope(nodeid)

        def _assign_work_unit(self, node):
            # The queue is in order of the number of tests when it is used first.
            for scope in sorted(self.workqueue, key=lambda scope: not scope.startswith(_LONG)):
                self.workqueue.move_to_end(scope)
            super()._assign_work_unit(node)

    return ByServer(config, log)
