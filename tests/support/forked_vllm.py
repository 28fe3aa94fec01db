"""Code in processes that have imported vLLM: importing it takes ten seconds of a core."""

import json
import os
import subprocess
import sys

from support.behaviours import WITHOUT_TAP

FORKS = """
import json, os, sys, traceback
import vllm.engine.arg_utils
import vllm.v1.engine.async_llm, vllm.v1.engine.llm_engine, vllm.plugins
for line in sys.stdin:
    code, environment, log = json.loads(line)
    child = os.fork()
    if not child:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        try:
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("EXIT", status, flush=True)
"""


class ForkedVllm:
    """Runs code in a process that has imported vLLM and loaded no plugin, a fresh one each time.

    Args:
        plugin_path: the processes' PYTHONPATH.
        tmp_path_factory: pytest's.
    """

    def __init__(self, plugin_path, tmp_path_factory):
        env = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
        env |= {"PYTHONPATH": plugin_path, "VLLM_LOGGING_LEVEL": "ERROR"}
        self._folders = tmp_path_factory
        self._parent = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, code, **environment):
        """Return (what the code printed after RESULT, its exit status, all that it wrote)."""
        log = self._folders.mktemp("fork") / "log"
        environment = {"ROUTEREPLAY_STORE_URL": "http://127.0.0.1:9"} | environment
        if WITHOUT_TAP:
            environment["ROUTEREPLAY_ENABLED"] = "0"
        self._parent.stdin.write(json.dumps([code, environment, str(log)]) + "\n")
        self._parent.stdin.flush()
        answer = next(line for line in self._parent.stdout if line.startswith("EXIT "))
        lines = log.read_text().splitlines()
        found = [line[7:] for line in lines if line.startswith("RESULT ")]
        return found, int(answer[5:]), log.read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()
