"""The page about metrics, made from their table, so that it names what the program shows.

python -m infernet.metrics.page > docs/metrics.md
"""

from __future__ import annotations

import sys
from typing import Final

from infernet.metrics.server import ANSWER_TIMEOUT_S, CONNECTIONS_MAX, HEAD_BYTES_MAX, REQUEST_TIMEOUT_S
from infernet.metrics.table import METRICS, Metric
from infernet.metrics.token import TOKEN_BYTES_MAX, TOKEN_BYTES_MIN

_HEAD: Final = f"""\
# Metrics

<!-- Made from the table of metrics: python -m infernet.metrics.page > docs/metrics.md -->

A node counts what it does, and shows it to [Prometheus](https://prometheus.io) in two ways:

```
infernet start --metrics-port 9464                GET http://127.0.0.1:9464/metrics, as long as the node runs
infernet stats --prometheus                       the same text, without a port
```

No port is opened unless one is set. It is one of this machine alone, unless `--metrics-host` says otherwise. Whoever
reads the metrics knows how much this node works and earns, so **another address needs a token**: a file of yours alone,
without which the node does not start. Who then asks without it, for either page, is answered with 401. On loopback a
token may be set, too.

```
(umask 077; openssl rand -hex 32 > ~/.config/infernet-metrics.token)
infernet start --metrics-port 9464 --metrics-host 192.168.1.20 --metrics-token-file ~/.config/infernet-metrics.token
curl -H "Authorization: Bearer $(cat ~/.config/infernet-metrics.token)" http://192.168.1.20:9464/healthz
```

The token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters, and is read when the node starts. **It crosses the
network in the clear**, as the numbers do: where others could listen, let Prometheus ask through a VPN or `ssh -L`.

The port answers `GET` and `HEAD` of `/metrics` and `/healthz`. It holds {CONNECTIONS_MAX} connections at most, one
request each, with a head of {HEAD_BYTES_MAX // 1024} KiB, {REQUEST_TIMEOUT_S:g} seconds to send it and
{ANSWER_TIMEOUT_S:g} to read the answer. Over loopback the `Host` of a request has to be `localhost` or a loopback
address, so that a page in a browser cannot read it.

Labels have few values, all of them below: no names, keys, addresses or texts of anybody, and nothing about the
machine but its cards and what this node takes of it. A metric that does not apply is left out: money without a
coordinator, the engine of a node that has none. Counters begin at 0 when the node starts; what was earned and lost
counts since the node exists. Values of GPUs are asked of their drivers when somebody asks, every 15 seconds at most;
**that has not been tried with a GPU.**

## Health

`/healthz` answers as long as the node's loop runs, which is what a container's health check wants to know:

```
curl -s http://127.0.0.1:9464/healthz
{{"ok": true, "pid": 4711, "uptime_ms": 61000, "role": "provider", "node_id": "602a47b5...", "control_plane": null,
 "heartbeats_ok": 2, "heartbeats_failed": 0, "last_heartbeat_at": 1796000000000, "last_heartbeat_error": null,
 "jobs_completed": 5, "jobs_failed": 0, "active_jobs": 1, "engine": "ready"}}
```

`last_heartbeat_at` is in milliseconds since 1970. `heartbeats_ok` were told to the coordinator at once,
`heartbeats_failed` were signed while there was no link to it.

## For Prometheus

```yaml
scrape_configs:
  - job_name: infernet
    scrape_interval: 30s
    static_configs:
      - targets: ["127.0.0.1:9464"]
    # Where the node wants a token:
    authorization:
      credentials_file: /etc/prometheus/infernet.token
```

and rules that say when something is wrong:

```yaml
groups:
  - name: infernet
    rules:
      - alert: InfernetEngineDown
        expr: infernet_engine_state{{state="ready"}} == 0
        for: 5m
      - alert: InfernetLinkDown
        expr: infernet_link_up == 0
        for: 5m
      - alert: InfernetJobsFail
        expr: increase(infernet_jobs_total{{end="failed"}}[15m]) > 5
      - alert: InfernetEarningsWait
        expr: infernet_unclaimed_micro_usd > 1e6
        for: 6h
```

Tokens per second over five minutes are `rate(infernet_output_tokens_total[5m])`, dollars per day
`increase(infernet_earned_micro_usd_total[1d]) / 1e6`. Without a Prometheus the numbers can be had with a shell:

```
infernet stats --prometheus | awk '$1 ~ /^infernet_(jobs_running|jobs_waiting|peers_connected)$/'
watch -n 5 "infernet stats --prometheus | grep -E '^infernet_(gpu|output_tokens_per)'"
```

The format is checked with the reader of Prometheus's own Python library; **a Prometheus server has not scraped a node
in our tests.**

## For Grafana

[grafana.json](grafana.json) is a dashboard of all metrics below, made from the same table: import it (Dashboards, New,
Import), and choose the Prometheus that asks your nodes. Above the panels you choose which of them are shown. **No
Grafana has read it yet**; a test compares it with the table.

## All of them

| metric | kind | labels | what it says |
|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    return _HEAD + "".join(map(_row, METRICS))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.shown_name}` | {metric.kind} | {labels} | {metric.help} |\n"


if __name__ == "__main__":
    sys.stdout.write(render())
