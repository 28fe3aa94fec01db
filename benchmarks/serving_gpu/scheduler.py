"""vLLM's scheduler, told by its requests to drop their routes at a stage.

For `--scheduler-cls serving_gpu.scheduler.StagedScheduler`; releases 0.22 to 0.30, where a
step's routes are `ModelRunnerOutput.routed_experts`.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from serving_gpu.ways import STAGE


class StagedScheduler(AsyncScheduler):
    """Looks at one request of a step: the requests of a load all ask for the same."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Drop the step's routes before or after the scheduler looks at them, or not at all."""
        stage = self._stage(scheduler_output)
        if stage == "captured":
            model_runner_output.routed_experts = None
        updated = super().update_from_output(scheduler_output, model_runner_output)
        if stage:
            for outputs in updated.values():
                for output in outputs.outputs:
                    output.routed_experts = None
        return updated

    def _stage(self, scheduler_output: Any) -> str:
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            params = request.sampling_params if request is not None else None
            if params is not None:
                return str((params.extra_args or {}).get(STAGE, ""))
        return ""
