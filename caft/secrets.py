"""What a secret looks like: the one list for configurations, errors, tracking, packages and jobs.
Asked wherever text or files leave the process that was given them."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

HIDDEN = "***"
# Words of a name whose value is secret: AWS_SECRET_ACCESS_KEY, X-Amz-Signature, clientSecret.
WORDS = (
    "apikey", "authorization", "cookie", "credential", "credentials", "jwt", "passphrase", "passwd",
    "password", "passwords", "pwd", "secret", "secrets", "sig", "signature", "token",
)  # fmt: skip
PUBLIC_NAMES = ("user_agent_token",)  # a term of robots.txt
NAME_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
FILES = (
    ".env", ".env.*", "*.env", ".netrc", "_netrc", ".pgpass", ".npmrc", ".pypirc", ".htpasswd",
    ".git-credentials", ".boto", ".s3cfg", ".dockercfg", ".dockerconfigjson", ".vault-token",
    "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.gpg",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "kubeconfig*", "*.kubeconfig",
    "*.tfstate", "*.tfstate.*", "*.tfvars", "*.tfvars.json", "credentials", "credentials.*",
    "*credentials.json", "*credentials.csv", "client_secret*.json", "*service*account*.json",
    "secrets.y*ml", "secrets.json", "secrets.toml", "*-token", "*_token", "*.token", "token",
)  # fmt: skip
# Texts that are secrets whatever stands before them: of GitHub, GitLab, Hugging Face, Slack,
# OpenAI, AWS, Google, Databricks, JSON web tokens, and keys in PEM.
TOKENS = (
    r"gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_\w{20,}|xox[abeprs]-[\w-]{10,}"
    r"|sk-[\w-]{20,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{10,}|dapi[0-9a-f]{30,}"
    r"|eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"
)
TOKEN = re.compile(rf"(?<![\w-])(?:{TOKENS})|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*")
BEARER = re.compile(r"\b(?:Bearer|Basic)\s+(?P<value>[\w.~+/=-]{12,})")
# What follows a user's name is a port where it is a number before the path; any other `@` later in
# the address ends a password, whatever it holds.
PASSWORD = re.compile(r"://(?!\[)[^/?#\s:@]*:(?!\d{1,5}(?:[/?#\s'\",;)]|$))(?P<value>\S*)@")
USER = re.compile(r"://(?P<value>[^/?#\s:@]+)@")
ASSIGNED = re.compile(
    r"(?P<before>^|[?&;#,\s{(\"'])(?P<name>[A-Za-z][\w.%-]*)=(?P<value>[^\s&;#\"']+)"
)
LEAST_TOKEN = 16  # characters of a user's name, or of a `key=`, that are taken for a token


def is_secret_name(name: str) -> bool:
    """Whether a key, a parameter of an address or an environment variable names a secret, by whole
    words: `auth_token` does, `max_tokens` and `token_file` do not."""
    last = name.rpartition(".")[2]
    words = [word.lower() for word in NAME_PARTS.findall(last.replace("%2D", "-"))]
    if last in PUBLIC_NAMES:
        return False
    if words[-1:] in (["path"], ["file"]):  # where a secret lies, as RAY_AUTH_TOKEN_PATH
        return False
    is_key = "key" in words[1:]  # api_key and AWS_ACCESS_KEY_ID; a plain `key` is a row's name
    return is_key or any(word in WORDS or word.endswith("password") for word in words)


def is_secret_file(name: str) -> bool:
    """Whether a file of this name holds keys or passwords."""
    return any(fnmatch(name.lower(), pattern) for pattern in FILES)


def holds_secret(text: str) -> bool:
    """Whether a text holds a password, a token or a signature: in an address or on its own."""
    return masked(text) != text


def masked(text: str) -> str:
    """The text with `***` in the place of every secret that it holds."""
    text = PASSWORD.sub(_without_value, text)
    text = USER.sub(lambda found: _without_value(found, _is_token(found["value"])), text)
    text = ASSIGNED.sub(lambda found: _without_value(found, _is_secret(found)), text)
    return TOKEN.sub(HIDDEN, BEARER.sub(_without_value, text))


def without_secrets(value: Any) -> Any:
    """Nested sections and lists without entries of a secret's name, and every text masked."""
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if not is_secret_name(str(name))}
        return {name: without_secrets(item) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def _without_value(found: re.Match[str], is_secret: bool = True) -> str:
    if not is_secret:
        return found[0]
    start, end = (place - found.start() for place in found.span("value"))
    return found[0][:start] + HIDDEN + found[0][end:]


def _is_secret(found: re.Match[str]) -> bool:
    in_address = found["before"] in ("?", "&")
    is_plain_key = in_address and found["name"].lower() == "key" and _is_token(found["value"])
    return is_plain_key or is_secret_name(found["name"])


def _is_token(text: str) -> bool:
    """Whether a word is no name: `ghp_16C7e42F292c6912E7`, `user%3Apassword`."""
    mixed = re.search(r"\d", text) is not None and re.search(r"[A-Za-z]", text) is not None
    is_known = "%3a" in text.lower() or TOKEN.match(text) is not None
    return is_known or (mixed and len(text) >= LEAST_TOKEN)
