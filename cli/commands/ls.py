"""`routereplay ls`: the latest requests."""

from __future__ import annotations

import typer

from routereplay.cli.options import DEFAULT_STORE, AsJson, Limit, StoreUrl, print_json, told


def command(
    limit: Limit = 20,
    as_json: AsJson = False,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """List the latest requests that were sealed or dropped."""
    from routereplay.cli.columns import ago, columns, nbytes
    from routereplay.client import RouteStoreClient

    with told(as_json), RouteStoreClient(store) as client:
        found = client.recent_requests(limit)
    if as_json:
        print_json({"requests": found})
        return
    rows = [
        (
            one["request_id"] + (f" [{one['choice']}]" if one["choice"] else ""),
            one["trajectory_id"] or "-",
            one["state"] if one["complete"] else "incomplete",
            one["reason"] or one["model"] or "-",
            str(one["tokens"]),
            str(one["rows"]),
            nbytes(one["bytes"]),
            ",".join(one["policy_versions"]) or "-",
            ago(one["at"]),
        )
        for one in found
    ]
    heads = ("request", "trajectory", "state", "model", "tokens", "rows", "bytes", "policy", "when")
    typer.echo(columns(heads, rows, right={4, 5, 6}) if rows else "nothing was recorded lately")
