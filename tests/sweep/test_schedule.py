"""What the scheduler of a study does with jobs that end, fail, are forgotten, or lose. Its job
server is one of this file, whose jobs end as told; test_study.py has the real one."""

import json
from pathlib import Path

import pytest
from sweep_support import CONFIGS, study_config

from caft.config import load_config, load_model_config, to_yaml
from caft.errors import ClusterError, ConfigError, DataError
from pipelines.config import TrackingConfig
from pipelines.data.dataset import Dataset
from pipelines.submit.jobs import Outcome
from pipelines.sweep import schedule as schedule_module
from pipelines.sweep.asked import require_same_tasks
from pipelines.sweep.points import all_points
from pipelines.sweep.results import collect, errors_of
from pipelines.sweep.schedule import Scheduler, room_for
from pipelines.sweep.state import Store
from pipelines.sweep.tasks import all_tasks
from pipelines.train.config import TrainConfig
from pipelines.train.identity import begun


class Server:
    """A job server whose jobs end when they are first looked at.

    Args:
        fails: how often a task fails before it succeeds.
        errors: of a task's point: 1 - recall, or its loss.
    """

    def __init__(self, fails: dict[str, int] | None = None, errors: dict[str, float] | None = None):
        self.fails, self.errors = dict(fails or {}), errors or {}
        self.submitted: list[str] = []
        self.asked: dict[str, TrainConfig] = {}
        self._jobs: dict[str, tuple[str, Path, str]] = {}
        self.most = self._open = 0

    def submit(self, stage: str, arguments, name: str, job: str) -> None:
        self.submitted.append(name)
        self._open += 1
        self.most = max(self.most, self._open)
        output = json.loads(next(a for a in arguments if a[:7] == "output=")[7:])
        self._jobs[job] = (stage, Path(output), name)
        if stage == "train":
            self.asked[name] = load_config(TrainConfig, arguments[0], arguments[1:])

    def outcome(self, job: str) -> Outcome:
        if job not in self._jobs:
            return Outcome.LOST
        stage, output, name = self._jobs[job]
        self._open -= 1
        if self.fails.get(name, 0):
            self.fails[name] -= 1
            return Outcome.FAILED
        output.mkdir(parents=True)
        error = next((e for key, e in self.errors.items() if key in name), 0.5)
        if stage == "train":
            result, file = {"metrics": {"loss/total": 1 + error}}, "train.json"
            (output / "train.yaml").write_text(to_yaml(self.asked[name]))
            known = begun(load_model_config(self.asked[name].model), "the rows", "1")
            (output / "run.json").write_text(json.dumps(known))
        else:
            scores = {"whole_t2i_r1": 1 - error, "images": 24}
            result, file = {"benchmarks": {"scenes": scores}}, "metrics.json"
        (output / file).write_text(json.dumps(result))
        return Outcome.DONE

    def last_words(self, job: str) -> str:
        return "some lines\nOutOfMemoryError: no room"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(schedule_module, "LOOK_EVERY_S", 0.0)


def scheduler(config, server: Server, concurrency: int = 2, finished=lambda point: None):
    points = all_points(config)
    tasks = all_tasks(config, points, TrackingConfig(), 6400)
    store = Store(config.output)

    def error(point) -> float:
        return errors_of(point, config)[config.targets[0]]

    made = Scheduler(config, tasks, store, server, concurrency, error, finished)
    return made, points, tasks, store


def test_every_task_runs_once_after_what_it_needs(tmp_path):
    config, server, seen = study_config(tmp_path), Server(), []
    made, points, tasks, _ = scheduler(config, server, finished=seen.append)
    made.run()
    assert sorted(server.submitted) == sorted(task.name for task in tasks)
    place = {name: n for n, name in enumerate(server.submitted)}
    assert all(place[needed] < place[task.name] for task in tasks for needed in task.needs)
    assert server.most == 2
    assert sorted(point.name for point in seen) == sorted(point.name for point in points)
    rows = collect(points, config, 6400)
    assert [row["point"] for row in rows] == [point.name for point in points]
    assert all(row["1-scenes/whole_t2i_r1"] == 0.5 and row["loss/total"] == 1.5 for row in rows)


def test_the_same_command_goes_on_and_repeats_nothing(tmp_path):
    """After a driver was killed while a job ran, which ended without it."""
    config, first = study_config(tmp_path), Server()
    made, _, tasks, store = scheduler(config, first)
    made._start_ready()  # of the two trunks, neither of which is looked at again
    jobs = [store[task.name].jobs for task in tasks if store[task.name].status == "running"]
    assert len(jobs) == 2
    for (job,) in jobs:
        first.outcome(job)
    second = Server()
    made, *_ = scheduler(config, second)
    made.run()
    assert sorted(first.submitted + second.submitted) == sorted(task.name for task in tasks)
    third = Server()
    made, *_ = scheduler(config, third)
    made.run()
    assert third.submitted == []


def test_jobs_of_a_cluster_that_is_gone_are_started_again(tmp_path):
    """That costs them none of their tries."""
    config = study_config(tmp_path, tries=1)
    made, *_ = scheduler(config, Server())
    made._start_ready()
    server = Server()
    made, points, tasks, store = scheduler(config, server)
    made.run()
    assert sorted(server.submitted) == sorted(task.name for task in tasks)
    assert all(len(store[task.name].jobs) == 1 for task in tasks)
    assert len(collect(points, config, 6400)) == len(points)


def test_a_failure_is_tried_again_then_marked_and_never_lost(tmp_path, capsys):
    config = study_config(tmp_path)
    points = all_points(config)
    flaky, hopeless = points[0].name, points[3].name
    trunk = f"trunk-{points[2].setting.name}-0"
    server = Server(fails={flaky: 1, hopeless: 2})
    made, points, _, store = scheduler(config, server)
    made.run()
    assert server.submitted.count(flaky) == server.submitted.count(hopeless) == 2
    assert store[flaky].status == store[trunk].status == "done"
    assert store[hopeless].status == "failed"
    assert store[hopeless].why == "OutOfMemoryError: no room"
    assert store[f"evaluate-{hopeless}"].status == "dropped"
    assert hopeless in store[f"evaluate-{hopeless}"].why
    assert "it is tried again" in (printed := capsys.readouterr().out)
    assert "failed for good" in printed
    assert len(collect(points, config, 6400)) == len(points) - 1
    again = Server()
    made, *_ = scheduler(config, again)
    made.run()  # a new command tries what failed, and what needed it
    assert again.submitted == [hopeless, f"evaluate-{hopeless}"]


def test_learning_rates_that_lose_are_dropped_and_say_so(tmp_path):
    config = study_config(tmp_path, lr=[1e-3, 1e-4, 1e-5])
    server = Server(errors={"lr0.001-": 0.6, "lr0.0001-": 0.2, "lr1e-05-": 0.9})
    made, points, tasks, store = scheduler(config, server)
    made.run()
    assert {task.name for task in tasks if store[task.name].status == "dropped"} == {
        task.name for task in tasks if task.waits_for_choice and "lr0.0001-" not in task.name
    }
    lost = f"evaluate-{points[1].name}"
    assert store[lost].why == "learning rate 0.001 was not among the best"
    assert len(collect(points, config, 6400)) == 2 * (3 + 1)


def test_a_rate_that_only_fails_is_not_chosen(tmp_path):
    config = study_config(tmp_path, lr=[1e-3, 1e-4], tries=1)
    points = all_points(config)
    bad = [f"trunk-{p.setting.name}-0" for p in points if "lr0.001" in p.name]
    made, points, _, store = scheduler(config, Server(fails=dict.fromkeys(bad, 1)))
    made.run()
    done = [point for point in points if store[f"evaluate-{point.name}"].status == "done"]
    assert {point.setting.recipe.optimizer.lr for point in done} == {1e-4}
    assert len(done) == 4


def test_a_cluster_without_room_for_one_point_is_refused(tmp_path):
    config = study_config(tmp_path)
    points = all_points(config)
    assert room_for(config, points, {"CPU": 7.0, "GPU": 0.0}) == 3
    limited = config.model_copy(update={"concurrency": 2})
    assert room_for(limited, points, {"CPU": 7.0}) == 2
    with pytest.raises(ClusterError, match=r"a point needs 2 CPUs, the cluster has 1 CPUs"):
        room_for(config, points, {"CPU": 1.0})


def test_results_without_the_target_are_named(tmp_path):
    config = study_config(tmp_path, targets=["1-photographs/whole_t2i_r1"])
    points = all_points(config)
    with pytest.raises(DataError, match="no point of this study is done"):
        collect(points, config, 6400)
    made, *_ = scheduler(config, Server())
    made.run()
    with pytest.raises(ConfigError, match=r"has no 'photographs/whole_t2i_r1'; it has scenes/"):
        collect(points, config, 6400)


def test_a_finished_study_grows_at_its_end_and_in_its_middle(tmp_path):
    """A trunk that is too short is continued from its last checkpoint; nothing is trained twice."""
    made, points, *_ = scheduler(study_config(tmp_path), Server())
    made.run()
    branches = {point.samples: point.branches_at for point in points}
    longer = Server()
    config = study_config(tmp_path, samples_seen=[320, 640, 1280])
    made, *_ = scheduler(config, longer)
    made.run()
    trunk = f"trunk-{points[0].setting.name}-1"
    point = f"{points[0].setting.name}-n1280"
    assert [name for name in longer.submitted if points[0].setting.name in name] == [
        trunk, point, f"evaluate-{point}",
    ]  # fmt: skip
    start = longer.asked[trunk].start_from
    assert start.state
    assert start.checkpoint.endswith(
        f"{points[0].setting.name}-0/checkpoints/step-{branches[640]:08d}"
    )
    between = Server()
    config = study_config(tmp_path, samples_seen=[160, 320, 480, 640, 1280])
    made, points, *_ = scheduler(config, between)
    made.run()
    new = [name for name in between.submitted if points[0].setting.name in name]
    assert sum(name.startswith("trunk-") for name in new) == 2
    assert len(new) == 2 * 3
    first = points[0].setting.name
    assert between.asked[f"trunk-{first}-2"].start_from is None  # to 160, before all others
    start = between.asked[f"trunk-{first}-3"].start_from.checkpoint
    assert start.endswith(f"{first}-0/checkpoints/step-{branches[320]:08d}")
    assert len(collect(points, config, 6400)) == len(points)


def test_what_was_done_with_another_recipe_or_dataset_is_refused_by_the_key(tmp_path, monkeypatch):
    """Editing a file between two commands mixes old and new numbers in one law."""
    recipe = tmp_path / "recipe.yaml"
    original = (CONFIGS / "train" / "demo.yaml").read_text()
    recipe.write_text(original)
    set_ = [
        "optimizer.warmup_steps=2", "scaling.num_workers=1", f"dataset={tmp_path / 'data'}",
    ]  # fmt: skip
    config = study_config(tmp_path, train=str(recipe), train_set=set_)
    (tmp_path / "data").mkdir()
    manifest = {"files": [], "config": {}}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    made, _, tasks, _ = scheduler(config, Server())
    monkeypatch.setattr(Dataset, "fingerprint", "the rows")
    require_same_tasks(tasks)  # nothing was done
    made.run()
    require_same_tasks(tasks)
    recipe.write_text(original.replace("weight_decay: ", "weight_decay: 1"))
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay: .*trunk-\S+ holds a training"):
        require_same_tasks(tasks)
    recipe.write_text(original + "# a comment changes nothing\n")
    require_same_tasks(tasks)
    monkeypatch.setattr(Dataset, "fingerprint", "other rows")
    with pytest.raises(ConfigError, match=r"dataset: .* made with 'the rows', here it is 'other"):
        require_same_tasks(tasks)
    changed = study_config(tmp_path, train=str(recipe), train_set=set_, cooldown_fraction=0.5)
    monkeypatch.setattr(Dataset, "fingerprint", "the rows")
    with pytest.raises(ConfigError, match=r"optimizer\.cooldown_steps: .* a training made with"):
        require_same_tasks(all_tasks(changed, all_points(changed), TrackingConfig(), 6400))
