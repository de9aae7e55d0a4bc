"""What only its owner may read: the folder below which Ray works, and the token of a cluster.
Called by what starts Ray here; Ray itself gives its folder mode 0777 and its token mode 0644."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from pathlib import Path

from ray._common.utils import get_default_system_temp_dir
from ray._private.authentication.authentication_token_setup import _enable_token_auth

from caft.errors import ClusterError

LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
RAYS = "ray"  # Ray opens the folder that it is given to all users, so it gets one inside


def ray_folder() -> str:
    """This user's folder for Ray's sessions on this machine, below one of mode 0700.

    Raises:
        ClusterError: somebody else made a file or folder of that name, or sockets below it would
            have too long a path.
    """
    outer = Path(get_default_system_temp_dir(), f"caft-{os.getuid()}").absolute()
    inner = str(outer / RAYS)
    require_short_sockets(inner)
    try:
        outer.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = outer.lstat()
    except OSError as error:
        raise ClusterError(f"{outer}: {error.strerror}; set RAY_TMPDIR to another folder") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ClusterError(
            f"{outer}: is no folder of yours; set RAY_TMPDIR to a folder that is yours alone"
        )
    outer.chmod(0o700)
    return inner


def make_token(path: Path) -> None:
    """Write a new token for a cluster, unless there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32))


def require_token() -> None:
    """Turn authentication on for a local cluster, as Ray does, with a token made here."""
    if "RAY_AUTH_MODE" not in os.environ:
        _enable_token_auth()  # Ray read the environment when it was imported
    if os.environ["RAY_AUTH_MODE"].lower() != "token":
        return
    if "RAY_AUTH_TOKEN" not in os.environ:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        make_token(Path(named) if named else Path.home() / ".ray" / "auth_token")


def require_short_sockets(folder: str) -> None:
    """Raises ClusterError where the sockets that Ray makes below `folder` get too long a path."""
    longest = os.path.join(os.path.abspath(folder), LONGEST_SOCKET)
    most = 107 if sys.platform == "linux" else 103
    if (size := len(os.fsencode(longest))) > most:
        raise ClusterError(
            f"{folder}: Ray's sockets below it have paths of {size} bytes, the system takes "
            f"{most}; set RAY_TMPDIR to a folder with a shorter path, such as /tmp"
        )
