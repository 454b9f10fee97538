"""Every metric, for Prometheus; each has the project as a label.

A process that serves exposes the default registry (``prometheus_client.start_http_server(9000)``), which holds them;
several that share one port, as under gunicorn, need ``LookupMetrics(multiprocess=True)``. A process that ends, such as
``feast materialize``, can't be scraped: it leaves a file for each view where node_exporter's textfile collector looks,
and goes on counting from what the file says.

``LookupClient`` doesn't import this package; hand it ``observer=LookupMetrics()``.
"""

from recsys_llm.metrics.lookups import LookupMetrics
from recsys_llm.metrics.names import STATUSES
from recsys_llm.metrics.runs import RUNS, LagCollector, write_run

__all__ = ["RUNS", "STATUSES", "LagCollector", "LookupMetrics", "write_run"]
