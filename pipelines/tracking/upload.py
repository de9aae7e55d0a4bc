"""Sends a run's event log to an MLflow server. How far it got stands beside the log, so that any
process that opens the output later sends the rest, to the server that it is told to."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from caft.errors import StorageError
from pipelines import storage
from pipelines.other_trackers import Also
from pipelines.ownership import has_live_owner
from pipelines.runs import address_of, create_run, find_run, is_active, open_client, shown_uri
from pipelines.tracking.events import FOLDER, PASSED, Event, EventLog, Writer
from pipelines.tracking.send import LATER, send_event
from pipelines.tracking_config import TrackingConfig

SENT = "sent.json"  # in a log
NO_METRICS, NO_ARTIFACTS = "does not take metrics", "does not take artifacts"
RETRY_ARTIFACTS_S = 60.0
# Error codes of MLflow for what it would not take at another time either.
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
ENDED = ("FINISHED", "FAILED", "KILLED")


class Uploader:
    """A log on its way to a server. Sending an event again changes nothing there, so a process may
    die between sending it and noting that."""

    def __init__(self, log: EventLog, tracking: TrackingConfig, inputs: Sequence[str] = ()) -> None:
        """Its stage reads `inputs`, outputs of others: the rest of their logs is sent, too."""
        self.tracking, self._log, self._inputs = tracking, log, list(inputs)
        self._about = log.about()
        self._key = self._about["key"]
        self._also = Also(tracking, self._about["stage"], self._key, log.output)
        self._place = f"{address_of(tracking)} {tracking.experiment}"
        self._state: dict[str, Any] = {"place": None, "run_id": None, "said": []}
        with suppress(StorageError, TypeError):  # none yet, or damaged: all is sent again
            self._state |= storage.read_json(log.path(SENT))
        self._is_connected, self._artifacts_at = False, 0.0

    @property
    def is_elsewhere(self) -> bool:
        """Whether what was sent is on another server, or in another experiment."""
        return self._state["run_id"] is not None and self._state["place"] != self._place

    @property
    def run_id(self) -> str:
        """The run's id on the server; its key while it has none."""
        return str(self._key if self.is_elsewhere else self._state["run_id"] or self._key)

    def connect(self) -> None:
        """Find the run by its key, or make it. One that is gone, or on another server, is replaced
        by one that names it and gets all of the log.

        Raises:
            ConfigError: the server would refuse it at every time.
            Exception: whatever MLflow raises while the server is unreachable.
        """
        before = self._state["run_id"]
        if self.is_elsewhere or not before or not is_active(open_client(self.tracking), before):
            run_id = find_run(self.tracking, self._key)
            if run_id is None:
                run_id = create_run(self.tracking, self._about["name"], self._key, before)
            if self.is_elsewhere:
                self._end_elsewhere()
            elif before:
                text = f"has no run {before} any more; what was logged goes to {run_id}"
                self.say(before, text)
            self._state |= {"place": self._place, "run_id": run_id, "instead_of": before}
            self._state |= {"status": None, "sent": {}, "sent_later": {}}
            self.save()
            if run_id == self._key or self._key.startswith("pending-"):  # of an earlier version
                steps = open_client(self.tracking).get_metric_history(run_id, PASSED)
                self._record({"known_step": max((m.step for m in steps), default=0)})
        self._is_connected = True

    def try_to_send(self, in_hurry: bool) -> bool:
        """Send what is new; whether the server takes it. Artifacts that it did not take are tried
        again after a minute, or now if `in_hurry`."""
        try:
            self._send_all(in_hurry)
            while self._inputs:
                send_rest(self.tracking, self._inputs.pop(), of_another=True)
        except Exception as error:  # whatever a dead server raises, the stage continues
            self.warn(NO_METRICS, error)
            return False
        return True

    def _send_all(self, in_hurry: bool) -> None:
        if self.tracking.also:
            self._send_each("shown", self._also.take)
        is_new = any(self._log.read(self._state.get(name, {})) for name in ("sent", "sent_later"))
        if not (is_new or self.is_elsewhere):
            return
        if not self._is_connected:
            self.connect()
        client = open_client(self.tracking)
        try:
            self._send_each("sent", lambda event: self._send(client, event, later=False))
            self._state["said"] = [what for what in self._state["said"] if what != NO_METRICS]
            if in_hurry or time.monotonic() > self._artifacts_at:
                self._send_artifacts(client)
        except Exception:
            if is_active(client, self.run_id):
                raise
            self._is_connected = False
            self._send_all(in_hurry)

    def end_as(self, status: str) -> None:
        """Record how a run ended whose own process did not live to do so."""
        events = [event for _, _, event in self._log.read(self._state.get("sent", {}))]
        known = [self._state.get("status"), *(e["status"] for e in events if "status" in e)]
        if known[-1] not in ENDED:
            self._record({"status": status})

    def warn(self, what: str, error: Exception) -> None:
        """Say what waits, and why."""
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        kept = f"they are kept in {self._log.folder} and sent when it does"
        self.say(what, f"{what} ({reason}); {kept}")

    def say(self, subject: str, text: str) -> None:
        """A line about the server, which no later start repeats before all is sent."""
        if subject not in self._state["said"]:
            self._state["said"].append(subject)
            where = shown_uri(self.tracking)
            print(f"tracking: {where} {text}", file=sys.stderr, flush=True)
            with suppress(StorageError):
                self.save()

    def save(self) -> None:
        storage.write_json(self._log.path(SENT), self._state)

    def close(self) -> None:
        self._also.close()

    def _record(self, event: Event) -> None:
        writer = Writer(self._log)
        writer.append(event)
        writer.write()

    def _send_each(self, name: str, send: Callable[[Event], object]) -> None:
        """Call `send` with each event that `name` has not got yet; how the run ended comes last."""
        ends = self._state.setdefault(name, {})
        new = self._log.read(ends)
        try:
            for file, end, event in sorted(new, key=lambda item: "status" in item[2]):
                send(event)
                ends[file] = max(end, ends.get(file, 0))
        finally:
            if new:
                self.save()

    def _send(self, client: Any, event: Event, later: bool) -> None:
        """What the server never takes is left out with a line, and holds up nothing."""
        from mlflow.exceptions import MlflowException

        if bool(LATER & event.keys()) != later:
            return
        try:
            old = self._state["instead_of"]
            send_event(client, self.tracking, self.run_id, self._log.output, event, old)
            self._state["status"] = event.get("status", self._state["status"])
        except (MlflowException, LookupError) as error:
            code = getattr(error, "error_code", REFUSED[0])
            if code not in REFUSED or not is_active(client, self.run_id):
                raise
            reason = str(error).splitlines()[0][:200]
            self.say(reason, f"refuses {next(iter(event))} of the run ({reason}); it is left out")

    def _send_artifacts(self, client: Any) -> None:
        """Whatever the artifact store raises, no metric waits for it."""
        try:
            self._send_each("sent_later", lambda event: self._send(client, event, later=True))
        except Exception as error:
            if not is_active(client, self.run_id):
                raise
            self._artifacts_at = time.monotonic() + RETRY_ARTIFACTS_S
            self.warn(NO_ARTIFACTS, error)
        else:
            self._state["said"] = []
        self.save()

    def _end_elsewhere(self) -> None:
        """End the run where it was before, if that answers now: most often it was a wrong one."""
        from mlflow import MlflowClient

        if self._state.get("status") not in ENDED:
            with suppress(Exception):
                client = MlflowClient(tracking_uri=self._state["place"].rpartition(" ")[0])
                client.set_terminated(self._state["run_id"], "KILLED")


def send_rest(
    tracking: TrackingConfig, output: str, ended: str = "KILLED", of_another: bool = False
) -> None:
    """Send what the logs in an output hold that the server has not got.

    Args:
        ended: the status of a run whose process did not live to give it one.
        of_another: a stage reads the output: left alone are one with a live owner, one that this
            user cannot write, and runs that are elsewhere.
    """
    with suppress(StorageError):
        names = storage.list_folders(storage.join(output, FOLDER))
        if of_another and names and has_live_owner(output):
            return
        for name in names:
            uploader = Uploader(EventLog(output, name), tracking)
            if of_another and uploader.is_elsewhere:
                continue
            uploader.save()  # or it is not for this user to send
            uploader.end_as(ended)
            if not uploader.try_to_send(in_hurry=True):
                return
