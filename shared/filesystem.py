"""A JuiceFS file system as a user's Secret describes it (behaviour.md section 2, community edition).

Secrets are written by hand, so each key is checked where it enters, and a refusal names the key and never its value.
What the client takes by environment goes there; what is left may stand in an argv.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote, unquote

import yaml

from shared.domain import Secret, digest, require_text
from shared.errors import InvalidRequest

_VALUE_BYTES: Final = 4096
_ENVS_BYTES: Final = 16384
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_FORMAT_KEYS: Final = ("block-size", "compress", "trash-days", "capacity", "inodes", "shards")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
# `--force` formats over a living file system; the client's help is no answer.
_REFUSED_OPTIONS: Final = frozenset({"force", "help"})
_BY_ENVIRONMENT: Final = ("access-key", "secret-key", "session-token")
_UNSUPPORTED: Final = ("encrypt_rsa_key", "configs")
"""Leaving these out in silence would store plain text, or start a client without its files."""

# The engines that take META_PASSWORD when the address has a user and no password.
_PASSWORD_FROM_ENVIRONMENT: Final = frozenset({"redis", "rediss", "unix", "mysql", "postgres"})
# Engines of files, and the one that takes a password from nowhere else: its URL stands in an argv as it is.
_AS_IT_IS: Final = frozenset({"sqlite3", "badger", "etcd"})
_PASSWORD_IN_URL = re.compile(r"://[^/]*:[^/]*@")
_ENCODED = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*")
_PASSWORD_IN_QUERY = re.compile(r"[?&](?:ssl)?password=")
_ENV_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_RESERVED_ENVS = re.compile(
    r"LD_.*|GCONV_PATH|LOCPATH|NLSPATH|GLIBC_TUNABLES|SHELLOPTS|BASHOPTS|BASH_ENV|CSI_.*|PATH|JFS_SUPER_COMM|JFS_FOREGROUND|JFS_INSIDE_CONTAINER|JFS_SUPERVISOR|WEBDAV_(USER|PASSWORD)"
)


def credentials_digest(secrets: Mapping[str, str]) -> str:
    """The digest by which the bus and the files of a machine name these credentials: 64 hex characters."""
    return digest(dict(secrets))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """Where a file system's metadata and objects are, and how one gets in.

    `address` is the metadata URL without its password, `credentials` the digest of the whole Secret. `format_options`
    are in the order in which `juicefs format` gets them: the last of a name wins.
    """

    name: str
    metaurl: Secret
    address: str
    password: Secret
    storage: str
    bucket: str
    access_key: Secret
    secret_key: Secret
    session_token: Secret
    format_options: tuple[tuple[str, str], ...]
    envs: tuple[tuple[str, Secret], ...]
    credentials: str

    @classmethod
    def parse(cls, secrets: Mapping[str, str]) -> Self:
        """The file system that the keys of a Secret describe; unknown keys are ignored.

        Raises:
            InvalidRequest: names the key that is missing or can't be used, and never shows a value.
        """
        if not all(isinstance(text, str) for pair in secrets.items() for text in pair):
            raise InvalidRequest("secrets must map text to text")  # the wire's decoder is lenient
        if not secrets.get("metaurl") and secrets.get("token"):
            raise InvalidRequest("secret key token: file systems of the enterprise edition are not supported yet")
        for key in _UNSUPPORTED:
            if secrets.get(key):
                raise InvalidRequest(f"secret key {key} is not supported yet")
        name = _text(secrets, "name")
        if not _NAME.fullmatch(name):
            raise InvalidRequest("secret key name: 3 to 63 of a-z, 0-9 and '-', none of them at either end")
        metaurl = _text(secrets, "metaurl")
        metaurl = metaurl if "://" in metaurl else f"redis://{metaurl}"
        address, password = _without_password(metaurl)
        storage, bucket = _optional(secrets, "storage"), _optional(secrets, "bucket")
        if storage == "file" and bucket and not bucket.startswith("/"):
            raise InvalidRequest("secret key bucket: with storage 'file' it must be an absolute path")
        options = _format_options(secrets)
        if any(_PASSWORD_IN_URL.search(text) for text in (bucket, *(value for _, value in options))):
            raise InvalidRequest("secret key bucket: no password in the URL; use access-key and secret-key")
        keys = {key: _optional(secrets, key) for key in _BY_ENVIRONMENT[:2]}
        keys |= {key: value for key, value in options if key in _BY_ENVIRONMENT}
        return cls(
            name=name,
            metaurl=Secret(metaurl),
            address=address,
            password=Secret(password),
            storage=storage,
            bucket=bucket,
            access_key=Secret(keys["access-key"]),
            secret_key=Secret(keys["secret-key"]),
            session_token=Secret(keys.get("session-token", "")),
            format_options=tuple(pair for pair in options if pair[0] not in _BY_ENVIRONMENT),
            envs=_envs(secrets.get("envs", ""), has_password=bool(password)),
            credentials=credentials_digest(secrets),
        )

    @property
    def environment(self) -> dict[str, Secret]:
        """What a client of this file system needs in its environment, beside what it inherits."""
        found = dict(self.envs)
        if self.password:
            found.pop("REDIS_PASSWORD", None)  # the client would prefer it, the URL's own must win
        own = {
            "META_PASSWORD": self.password,
            "ACCESS_KEY": self.access_key,
            "SECRET_KEY": self.secret_key,
            "SESSION_TOKEN": self.session_token,
        }
        return found | {key: value for key, value in own.items() if value}

    @property
    def marks(self) -> tuple[Secret, ...]:
        """Every text that must not be shown, as it is and as a URL spells it, longest first."""
        keys = [self.metaurl, self.password, self.access_key, self.secret_key, self.session_token]
        # Short values of the environment are switches such as "1": masking those would only garble messages.
        keys += [value for _, value in self.envs if len(value.reveal()) > _SWITCH]
        texts = {key.reveal() for key in keys if key}
        texts |= {quote(text, safe="", errors="surrogateescape") for text in texts}
        return tuple(Secret(text) for text in sorted(texts, key=lambda text: (-len(text), text)))


_SWITCH: Final = 5


def _text(secrets: Mapping[str, str], key: str) -> str:
    return require_text(secrets.get(key, "").strip(), field=f"secret key {key}", limit=_VALUE_BYTES)


def _optional(secrets: Mapping[str, str], key: str) -> str:
    return _text(secrets, key) if secrets.get(key, "").strip() else ""


def _without_password(metaurl: str) -> tuple[str, str]:
    """The URL without its password, and the password as it is meant; unchanged where only the URL can bring it."""
    scheme, _, rest = metaurl.partition("://")
    if scheme not in _PASSWORD_FROM_ENVIRONMENT:
        if scheme not in _AS_IT_IS and _PASSWORD_IN_URL.search(metaurl):
            raise InvalidRequest("secret key metaurl: the client knows no engine of this name that takes a password")
        return metaurl, ""
    if scheme == "postgres" and _PASSWORD_IN_QUERY.search(rest):
        raise InvalidRequest("secret key metaurl: give the password as user:password@host, not in the query")
    if scheme == "mysql":  # user:password@net(address)/database, where the password may hold anything
        authority = rest.rpartition("/")[0]
    else:
        authority = re.split("[/?#]", rest, maxsplit=1)[0]
        authority = authority if "@" in authority else rest
    login, _, _ = authority.rpartition("@")
    user, _, password = login.partition(":")
    if not password:
        return metaurl, ""
    if "@" in user and scheme == "mysql":
        raise InvalidRequest("secret key metaurl: a user with '@' can't be used; give the user another name")
    if _ENCODED.fullmatch(password):
        password = unquote(password, errors="surrogateescape")
    return f"{scheme}://{user.replace('@', '%40')}:{rest[len(login) :]}", password


def _format_options(secrets: Mapping[str, str]) -> list[tuple[str, str]]:
    """The options of `juicefs format`: the dedicated keys first, then `format-options`, which so win."""
    found = [(key, _optional(secrets, key)) for key in _FORMAT_KEYS if secrets.get(key, "").strip()]
    for item in _optional(secrets, "format-options").split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key and not equals:
            continue
        if not _OPTION.fullmatch(key) or key in _REFUSED_OPTIONS:
            raise InvalidRequest("secret key format-options: an item is no option that can be used")
        if not value and (equals or key in _BY_ENVIRONMENT):
            raise InvalidRequest(f"secret key format-options: {key} has no value")
        found.append((key, value))
    return found


def _envs(text: str, *, has_password: bool) -> tuple[tuple[str, Secret], ...]:
    """The map of `envs`, sorted; every value is the text that was written, so 0022 stays 0022."""
    loaded = _load(text) if text.strip() else {}
    if not isinstance(loaded, dict):
        raise InvalidRequest("secret key envs is not a JSON or YAML map")
    for name, value in loaded.items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise InvalidRequest("secret key envs: a name is no name of an environment variable")
        if _RESERVED_ENVS.fullmatch(name) or (name == "META_PASSWORD" and has_password):
            raise InvalidRequest(f"secret key envs: {name} is set by the driver")
        if not isinstance(value, str) or "\0" in value or not _is_unicode(value):
            raise InvalidRequest(f"secret key envs: the value of {name} is not text")
    return tuple(sorted(((name, Secret(value)) for name, value in loaded.items()), key=lambda pair: pair[0]))


def _is_unicode(text: str) -> bool:
    """False for half a character, which JSON can write and an environment can't hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _load(text: str) -> Any:
    """The value of a JSON text, or the map of a YAML text, which may hold nothing but one map of scalars."""
    if len(text) > _ENVS_BYTES:
        raise InvalidRequest(f"secret key envs is longer than {_ENVS_BYTES} characters")
    try:
        loaded = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return _yaml_map(text)
    if isinstance(loaded, dict):
        return {name: json.dumps(value) if isinstance(value, bool) else value for name, value in loaded.items()}
    return loaded


def _yaml_map(text: str) -> dict[str, str]:
    """By events and not by yaml.load, which takes its time with what is nested deeply, and reads 0022 as 18."""
    maps, scalars = 0, list[str]()
    try:
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            maps += isinstance(event, yaml.MappingStartEvent)
            if maps > 1 or isinstance(event, yaml.SequenceStartEvent | yaml.AliasEvent):
                raise InvalidRequest("secret key envs: every value must be text")
            if isinstance(event, yaml.ScalarEvent):
                scalars.append(event.value)
    except yaml.YAMLError:
        raise InvalidRequest("secret key envs is neither JSON nor YAML") from None
    if not maps:
        raise InvalidRequest("secret key envs is not a JSON or YAML map")
    return dict(zip(scalars[::2], scalars[1::2], strict=True))
