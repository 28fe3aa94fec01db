"""Routes for the rollouts of a trainer: verl, slime, miles, NeMo-RL, prime-rl, ART.

    from routereplay.client.adapters.verl import fill_batch
    fill_batch(store, batch, trajectory_ids)

Each adapter fills the trainer's own field, in its own shape and dtype, from the store; what
replays it does not change. `fetch_rollouts` is what they share, for any other trainer. No
adapter imports its trainer.
"""

from routereplay.client.adapters.rollout import Rollout, fetch_rollouts, rows_of

__all__ = ["Rollout", "fetch_rollouts", "rows_of"]
