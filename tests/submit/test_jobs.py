"""A job server that stumbles: what is asked again, what is over, and what starts only once."""

import http.server
import json
import threading

import pytest

from caft.errors import ClusterError
from pipelines.submit import jobs as jobs_module
from pipelines.submit.jobs import JobGone, Jobs, Outcome, new_id

LOGIN = (200, "<html>Please log in</html>")
GATEWAY = (502, "<html>Bad Gateway</html>")
STUMBLES = [GATEWAY, (500, "Traceback ...\nKeyError: 'x'"), (503, ""), (429, "slow down"),
            (408, "timeout"), LOGIN, (200, "{"), (200, '{"another": "shape"}'), None]  # fmt: skip


class Server:
    """Ray's job server, as far as jobs are started and looked at; answers `faults` first (status
    and text; None breaks the connection), where they are of the kind that is asked for."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.started: list[str] = []
        self.faults: list[tuple[int, str] | None] = []
        self.is_new = False  # whether the first question stumbles too
        self.loses_answer = 0  # starts that happen and whose answer is a fault
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                size = int(self.headers.get("Content-Length", 0))
                self.answer(json.loads(self.rfile.read(size) or b"{}"))

            def answer(self, body):
                outer.answer(self, body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler, body) -> None:
        if (
            (handler.path != "/api/version" or self.is_new)
            and self.faults
            and not self.loses_answer
        ):
            return self.reply(handler, self.faults.pop(0))
        if handler.path == "/api/version":
            known = {"ray_version": "2.60.0", "version": "4", "ray_commit": "", "session_name": ""}
            return self.reply(handler, (200, json.dumps(known)))
        if body is not None:
            job = body["submission_id"]
            if job in self.jobs:
                return self.reply(handler, (500, f"ValueError: Job {job} already exists"))
            self.started.append(job)
            self.jobs[job] = {"type": "SUBMISSION", "entrypoint": "x", "status": "RUNNING",
                              "submission_id": job}  # fmt: skip
            if self.loses_answer:
                self.loses_answer -= 1
                return self.reply(handler, self.faults.pop(0))
            return self.reply(handler, (200, json.dumps({"job_id": job, "submission_id": job})))
        job = handler.path.split("/")[3]
        if job not in self.jobs:
            return self.reply(handler, (404, f"Job {job} does not exist"))
        known = {"logs": "done\n"} if handler.path.endswith("/logs") else self.jobs[job]
        return self.reply(handler, (200, json.dumps(known)))

    def reply(self, handler, fault) -> None:
        if fault is None:
            handler.connection.close()
            return
        status, text = fault
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text.encode())))
        handler.end_headers()
        handler.wfile.write(text.encode())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(jobs_module, "ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(jobs_module, "FOLLOW_AGAIN_S", 0.01)
    server = Server()
    monkeypatch.setenv("RAY_ADDRESS", server.address)
    yield server
    server.http.shutdown()


def start(jobs: Jobs) -> str:
    job = new_id()
    jobs.start(["true"], {}, {"name": "x"}, job)
    return job


@pytest.mark.parametrize("fault", STUMBLES, ids=str)
def test_a_stumble_tells_nothing_about_a_job(fault, server, capsys):
    jobs = Jobs()
    job = start(jobs)
    server.faults = [fault] * 3
    assert jobs.outcome(job) == Outcome.RUNNING
    assert server.faults == []
    assert capsys.readouterr().err.count("gives no answer") == 1
    server.jobs[job] |= {"status": "SUCCEEDED"}
    server.faults = [fault] * 3
    assert jobs.outcome(job) == Outcome.DONE
    server.faults = [fault] * 2
    assert jobs.last_words(job) == "done"


def test_gone_is_404_alone(server):
    jobs = Jobs()
    assert jobs.outcome("raysubmit_0") == Outcome.LOST
    with pytest.raises(JobGone, match=r"raysubmit_0: http.* knows no such job"):
        jobs.details("raysubmit_0")
    job = start(jobs)
    server.faults = [(404, "Job does not exist")]
    assert jobs.outcome(job) == Outcome.LOST


@pytest.mark.parametrize("status", [400, 401, 403, 405])
def test_a_refusal_is_final_and_one_line(status, server):
    jobs = Jobs()
    job = start(jobs)
    server.faults = [(status, "no\nthanks")] * 2
    with pytest.raises(ClusterError, match=f"{server.address} refuses: ") as caught:
        jobs.outcome(job)
    assert not isinstance(caught.value, JobGone)
    assert len(server.faults) == 1


def test_a_server_that_never_answers_ends_with_one_line_that_says_what_runs_on(server):
    jobs = Jobs(patience_s=0.1)
    job = start(jobs)
    server.faults = [GATEWAY] * 1000
    with pytest.raises(ClusterError, match=r"no answer for 0\.1 s .*jobs continue without it"):
        jobs.outcome(job)


@pytest.mark.parametrize("fault", [GATEWAY, LOGIN, None], ids=str)
def test_a_job_whose_start_was_not_answered_starts_once(fault, server):
    jobs = Jobs()
    server.faults, server.loses_answer = [fault], 1
    job = start(jobs)
    assert server.started == [job]
    server.faults = [GATEWAY, GATEWAY]
    second = start(jobs)
    assert server.started == [job, second]


def test_following_survives_a_dashboard_that_restarts(server):
    jobs = Jobs()
    job = start(jobs)
    server.faults = [GATEWAY] * 20
    timer = threading.Timer(1.0, lambda: server.jobs[job].update(status="SUCCEEDED"))
    timer.start()
    written = []
    assert jobs.follow(job, written.append) == 0
    assert "".join(written) == "done\n"


def test_a_failure_that_another_try_would_meet_again_is_told_from_others(server):
    jobs = Jobs()
    job = start(jobs)
    server.jobs[job] |= {"status": "FAILED", "driver_exit_code": 1}
    assert jobs.outcome(job) == Outcome.FAILED
    server.jobs[job] |= {"driver_exit_code": 2}
    assert jobs.outcome(job) == Outcome.REFUSED


@pytest.mark.parametrize("fault", [GATEWAY, (429, "slow down")], ids=str)
def test_a_new_server_that_is_busy_is_waited_for(fault, server):
    server.is_new, server.faults = True, [fault] * 3
    start(Jobs())
    assert len(server.started) == 1


@pytest.mark.parametrize("fault", [LOGIN, None], ids=str)
def test_what_is_no_job_server_is_given_no_time(fault, server):
    server.is_new, server.faults = True, [fault] * 2
    with pytest.raises(ClusterError, match="no job server answers"):
        Jobs()
    assert len(server.faults) == 1
