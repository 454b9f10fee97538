"""``recsys-llm metrics``: the lag of each view, for Prometheus to scrape."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys_llm.cli_options import Repository, StoreFile
from recsys_llm.timestamps import as_utc

app = typer.Typer(help="Metrics for Prometheus.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Metrics for Prometheus."""


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="0: any that is free; it is printed.", min=0, max=65_535)] = 9464,
    address: Annotated[str, typer.Option(help="To listen on.")] = "127.0.0.1",
    repository: Repository = Path("."),
    store_file: StoreFile = None,
) -> None:
    """Serve /metrics with the lag of each view, read from the registry at each scrape, until it is interrupted.

    Example: recsys-llm metrics serve --port 9464 -C my_features -f feature_store.prod.yaml
    """
    from prometheus_client import CollectorRegistry, start_http_server

    from recsys_llm.metrics import LagCollector
    from recsys_llm.retrieval.store import open_store

    store = open_store(repository, config_file=store_file)
    registry = CollectorRegistry()
    registry.register(LagCollector(store.project, lambda: materialized_until(store)))
    server, thread = start_http_server(port, addr=address, registry=registry)
    typer.echo(f"serving http://{address}:{server.server_port}/metrics")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()


def materialized_until(store: Any) -> dict[str, datetime | None]:
    """Return the end of the newest materialised interval of each view, as the registry has it now."""
    store.refresh_registry()
    return {
        view.name: None if view.most_recent_end_time is None else as_utc(view.most_recent_end_time)
        for view in store.list_feature_views()
    }
