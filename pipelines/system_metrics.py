"""Load of the machine that a stage runs on, under the names that MLflow's pages group as system.
Tracker samples it on its own thread and logs means with the metrics of a step."""

from __future__ import annotations

from contextlib import suppress

import psutil

PREFIX = "system/"


class SystemMetrics:
    """MLflow's own monitors of CPU, memory, disk and network, and of GPUs where nvidia-ml-py is
    installed and finds any."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        psutil.cpu_percent()  # tells the load since the call before
        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):
            self._monitors.append(GPUMonitor())

    def sample(self) -> None:
        for monitor in self._monitors:
            with suppress(Exception):  # a counter that cannot be read must not end the thread
                monitor.collect_metrics()

    def take(self) -> dict[str, float]:
        """Means of the samples since the last call; bytes sent and received since the start."""
        means: dict[str, float] = {}
        for monitor in self._monitors:
            means |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"{PREFIX}{name}": float(value) for name, value in means.items()}
