"""`routereplay trajectories`: the latest trajectories."""

from __future__ import annotations

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, Limit, StoreUrl, print_json, told


def command(
    limit: Limit = 20,
    as_json: AsJson = False,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """List the latest trajectories: turns, rows, policies, whether they are complete."""
    from routereplay.cli.columns import ago, columns, nbytes
    from routereplay.client import RouteStoreClient

    with told(as_json), RouteStoreClient(store) as client:
        found = client.recent_trajectories(limit)
    if as_json:
        print_json({"trajectories": found})
        return
    rows = [
        (
            one["trajectory_id"] or f"({one['request_id']})",
            f"{one['sealed']}/{one['turns']}",
            "complete" if one["complete"] else f"{one['dropped']} dropped",
            one["model"] or "-",
            str(one["rows"]),
            nbytes(one["bytes"]),
            ",".join(one["policy_versions"]) or "-",
            ago(one["last_at"]),
        )
        for one in found
    ]
    heads = ("trajectory", "turns", "state", "model", "rows", "bytes", "policy", "last turn")
    typer.echo(columns(heads, rows, right={1, 4, 5}) if rows else "nothing was recorded lately")
