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

    with megatron_on_cpu():
        import megatron.core
        import ranks  # noqa: F401  and all that it needs, once for every fork
        import sharding  # noqa: F401
        from nursery import Nursery

        nursery = Nursery()
        print(json.dumps({"facts": megatron.core.__version__}), file=answers)
        with single_process_groups():
            for line in sys.stdin:
                name, arguments = json.loads(line)
                try:
                    answer = {"facts": _scenario(name, nursery)(**arguments)}
                except Exception:  # noqa: BLE001  the test that asked shows it
                    answer = {"error": traceback.format_exc()}
                print(json.dumps(answer), file=answers)
        nursery.close()


def _scenario(name, nursery):
    if name == "nursery.run":
        return nursery.run
    module, function = name.split(".")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    main()
