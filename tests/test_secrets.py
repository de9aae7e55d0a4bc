"""One list of what a secret looks like, through every door by which text leaves a stage."""

import pytest
from mlflow import MlflowClient

from caft.config import load_config
from caft.errors import ConfigError
from caft.secrets import HIDDEN, holds_secret, is_secret_name, masked, without_secrets
from pipelines.config import StageConfig, TrackingConfig, command
from pipelines.data.config import DataConfig
from pipelines.submit.__main__ import job_environment
from pipelines.tracking import About, EventLog, Tracker

SECRET = "hunter2andmore"
SPELLINGS = [
    f"http://me:{SECRET}@host/x", f"http://me:{SECRET}/a@host/x", f"http://me:{SECRET}?a@host/x",
    f"http://me:{SECRET}#a@host/x", f"http://me:{SECRET}%40a@host/x", f"http://:{SECRET}@host",
    f"postgresql+psycopg2://me:{SECRET}@db:5432/mlflow", f"s3://key:{SECRET}@bucket/a",
    f"http://me:9{SECRET}@host/x", f"http://me%3A{SECRET}@host/x",
    f"https://ghp_{SECRET}0123456789abcdef@github.com/a", f"https://{SECRET}0123@host/x",
    f"https://b.s3.amazonaws.com/a?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}",
    f"https://b.s3.amazonaws.com/a?X-Amz-Security-Token={SECRET}",
    f"https://b.s3.amazonaws.com/a?AWSAccessKeyId=AKIA&Expires=1&Signature={SECRET}",
    f"https://storage.googleapis.com/b/a?x=1&X-Goog-Signature={SECRET}",
    f"https://storage.googleapis.com/b/a?GoogleAccessId=a@b&Signature={SECRET}",
    f"https://acc.blob.core.windows.net/c/a?sv=2024-01-01&sp=r&sig={SECRET}",
    f"https://d.cloudfront.net/a?Policy=x&Key-Pair-Id=k&Signature={SECRET}",
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}==;X=y",
    f"https://host/a?access_token={SECRET}", f"https://host/a?api_key={SECRET}",
    f"https://host/a?apikey={SECRET}", f"https://host/a#access_token={SECRET}",
    f"https://host/a?token={SECRET}", f"https://host/a?password={SECRET}",
    f"https://host/a?client_secret={SECRET}", f"https://host/a?key={SECRET}0123456789",
    f"host=db user=me password={SECRET} dbname=a", f"Bearer {SECRET}", f"hf_{SECRET}0123456789ab",
    f"github_pat_{SECRET}0123456789ab", f"glpat-{SECRET}0123456", f"xoxb-{SECRET}",
    f"sk-{SECRET}0123456789", f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n",
    f"eyJhbGciOiJI.eyJzdWIiOiIx{SECRET}.abc",
]  # fmt: skip
PLAIN = [
    "http://mlflow.example:5000/a@b", "postgresql://mlflow@db.example:5432/mlflow",
    "/a:b@c.csv?x=token", "http://[::1]:5000/a@b", "s3://bucket/a:b@c", "sqlite:////data/runs/mlflow.db",
    "http://host/a?key=1",
    "https://example.com/?page=2&sort=token", "A caption: it costs 3@4, see http://a.example/?q=x",
    "max_tokens=77", "2f1c9f0ad7b2c4e5f60718293a4b5c6d", "tokenizer=clip",
]  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_no_door_lets_a_secret_out(text, tmp_path, capfd):
    source = {"name": "a", "path": text}
    with pytest.raises(ConfigError, match=r"sources\.0\.path: holds a password") as refused:
        load_config(DataConfig, None, ["output=/x", f"sources={[source]}".replace("\n", "\\n")])
    wrong = []
    for key in ("sources", "tracking", "tracking.experiment.x", "download.timeout_s", "seed"):
        with pytest.raises(ConfigError) as caught:
            load_config(DataConfig, None, [f"{key}={text!r}"])
        wrong.append(str(caught.value))

    def fail() -> int:
        raise ConfigError(f"{text}: no such place")

    assert command(fail) == 2
    with pytest.raises(ConfigError, match="looks like a secret"):
        job_environment([f"PLACE={text}"])
    logged = without_secrets({"sources": [source, text], "place": text})
    said = "".join([str(refused.value), *wrong, *capfd.readouterr(), str(logged), masked(text)])
    assert SECRET not in said
    assert HIDDEN in str(logged)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_none_passes(text):
    assert not holds_secret(text)
    assert masked(text) == text


def test_names_of_secrets_match_by_whole_words():
    secret = (
        "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "PGPASSWORD", "api_key", "apiKey",
        "tracking.auth_token", "clientSecret", "X-Amz-Signature", "MYSQL_PWD", "AZURE_STORAGE_KEY",
    )  # fmt: skip
    plain = (
        "text.max_tokens", "first_tokens", "tokenizer", "key", "TOKENIZERS_PARALLELISM", "keyboard",
        "download.user_agent_token", "RAY_AUTH_TOKEN_PATH", "signal", "significance", "NCCL_DEBUG",
    )  # fmt: skip
    assert [name for name in secret if not is_secret_name(name)] == []
    assert [name for name in plain if is_secret_name(name)] == []


class Section(StageConfig):
    """Parameters whose names hold `token`."""

    max_tokens: int = 77
    auth_token: str = SECRET
    places: tuple[str, ...] = ()


def test_parameters_keep_what_is_no_secret_and_nothing_else(tmp_path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    config = Section(tracking=tracking).model_copy(update={"places": (SPELLINGS[0], "/a")})
    with Tracker.start(
        tracking, About("train", "x", "A test."), config, EventLog(str(tmp_path), "train")
    ) as tracker:
        pass
    logged = MlflowClient(tracking.uri).get_run(tracker.run_id).data.params
    assert logged["max_tokens"] == "77"
    assert logged["places"] == f"['http://me:{HIDDEN}@host/x', '/a']"
    assert SECRET not in str(logged)
