"""Runs `module.function` scenarios: a JSON line in, a JSON line of facts out."""

import importlib
import json
import os
import sys
import traceback

import torch


def main():
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What libraries print is no answer.
    from routereplay.parity.megatron_cpu import megatron_on_cpu, single_process_groups

    with megatron_on_cpu(), single_process_groups():
        import megatron.core

        print(json.dumps({"facts": megatron.core.__version__}), file=answers)
        for line in sys.stdin:
            name, arguments = json.loads(line)
            module, function = name.split(".")
            try:
                scenario = getattr(importlib.import_module(module), function)
                answer = {"facts": scenario(**arguments)}
            except Exception:  # noqa: BLE001  the test that asked shows it
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
