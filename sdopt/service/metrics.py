"""What Prometheus is told, https://prometheus.io/docs/practices/naming/."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)


class Metrics:
    """The series of one service, in a registry of their own."""

    def __init__(self, queued: Callable[[], int]) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "sdopt_requests", "Requests for images, by HTTP status.", ["status"], registry=registry
        )
        self.errors = Counter(
            "sdopt_errors",
            "Requests that got no image, by error code.",
            ["code"],
            registry=registry,
        )
        self.images = Counter("sdopt_images", "Images that were answered.", registry=registry)
        self.dropped = Counter(
            "sdopt_dropped_images", "Images whose client was gone.", registry=registry
        )
        self.queue = Gauge("sdopt_queue_images", "Images that wait.", registry=registry)
        self.queue.set_function(queued)
        self.batch = Histogram(
            "sdopt_batch_images", "Images in a batch.", buckets=BATCHES, registry=registry
        )
        self.queue_s = Histogram(
            "sdopt_queue_seconds", "Wait for a worker.", buckets=SECONDS, registry=registry
        )
        self.generate_s = Histogram(
            "sdopt_generate_seconds",
            "A batch on its device.",
            ["device"],
            buckets=SECONDS,
            registry=registry,
        )
        self.encode_s = Histogram(
            "sdopt_encode_seconds", "PNG and base64.", buckets=SECONDS, registry=registry
        )
        self.ready = Gauge(
            "sdopt_worker_ready", "1 if it generates.", ["worker", "device"], registry=registry
        )
        self.restarts = Counter(
            "sdopt_worker_restarts",
            "New processes for dead ones.",
            ["worker", "device"],
            registry=registry,
        )
        self.resident = Gauge(
            "sdopt_worker_resident_bytes",
            "Memory of its process.",
            ["worker", "device"],
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
