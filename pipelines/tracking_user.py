"""Makes the user as whom stages log to a tracking server, and who is no administrator, in the
server's table of users. Run as `python -m pipelines.tracking_user` before the server starts."""

from __future__ import annotations

import os
import sys

from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

from caft.errors import ConfigError
from pipelines.config import command

NAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def make_user() -> int:
    """The user of MLFLOW_TRACKING_USERNAME, with the password of MLFLOW_TRACKING_PASSWORD, in the
    table that MLFLOW_AUTH_CONFIG_PATH names; one that is there gets that password.

    Raises:
        ConfigError: a variable is missing, or the user is an administrator.
    """
    for variable in (NAME, PASSWORD, "MLFLOW_AUTH_CONFIG_PATH"):
        if not os.environ.get(variable):
            raise ConfigError(f"{variable}: is not set; set it to make the user of the stages")
    name, password = os.environ[NAME], os.environ[PASSWORD]
    users = SqlAlchemyStore()
    users.init_db(read_auth_config().database_uri)
    if not users.has_user(name):
        users.create_user(name, password)
    elif users.get_user(name).is_admin:
        raise ConfigError(f"{NAME}: {name} is an administrator; name another user for the stages")
    else:
        users.update_user(name, password=password)
    return 0


if __name__ == "__main__":
    sys.exit(command(make_user))
