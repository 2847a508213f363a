"""How a database is named, and the database object that all models share.

One name for a database is accepted everywhere (the library, the worker's `--database`, LIMPYD_JOBS_DATABASE):

    redis://[user:password@]host[:port][/db][?option=value&...]
    rediss://...                             the same through TLS; also the options ssl_*
    unix://[user:password@]/path[?db=0]      a unix socket
    embedded:///directory[?db=0]             a private server, started when it is needed (see embedded.py)
    host:port:db                             as in version 2; an IPv6 address is in brackets: [::1]:6379:0

Special characters are percent-encoded (`@` is `%40`). The user may be empty (`redis://:password@host`). What is not
said is what Redis has as its default: port 6379, db 0.

**Passwords**: no function here, no exception and no `str()` of a database shows one.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias
from urllib.parse import quote, unquote

import redis
from limpyd.contrib.database import PipelineDatabase
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import embedded, wire
from .exceptions import DatabaseException, EmbeddedServerError, InvalidDatabaseURL, ServerTooOld

Settings: TypeAlias = dict[str, Any]

DATABASE_VARIABLE = "LIMPYD_JOBS_DATABASE"
DEFAULT_DATABASE = "redis://localhost:6379/0"
# The oldest redis-server that has all the commands of our scripts.
MINIMUM_VERSION = (6, 2)
# An unreachable server must be told of in seconds; redis-py 5 to 7 would wait for the operating system, for minutes.
CHECK_TIMEOUT_SECONDS = 5.0

# Longer than any command of ours takes, and the time in which a connection that is open at this end only is noticed.
SOCKET_TIMEOUT_SECONDS = 5.0
HEALTH_CHECK_SECONDS = 30
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # noticed by the system after a minute

# What Redis says while it cannot be used; within the message of a script error, too.
OUTAGE_CLASSES = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
OUTAGE_CODES = re.compile(
    r"(?:^|[-\s])(READONLY|OOM|LOADING|BUSY|MISCONF|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS)\b"
)

HIDDEN = "***"
SECRETS = ("password", "ssl_password")


def default_database() -> str:
    """The name of the database for a command that is told none: LIMPYD_JOBS_DATABASE, or localhost:6379, db 0.

    Only for the commands: a program that imports the library names its database itself, or gets localhost:6379, db 0.
    """
    return os.environ.get(DATABASE_VARIABLE) or DEFAULT_DATABASE


def show_database(database: str | Mapping[str, Any]) -> str:
    """The name of a database for process titles, logs and messages: without its password and its options.

    Args:
        database: its settings, or a name in any accepted form; what cannot be read is shown as far as it is safe.
    """
    if isinstance(database, str):
        try:
            database = parse_database(database)
        except InvalidDatabaseURL as error:
            return str(error.value)
    user = f"{quote(str(database.get('username') or ''), safe='')}:{HIDDEN}@" if database.get("password") else ""
    number = database.get("db") or 0
    if database.get("embedded"):
        return f"embedded://{quote(str(database['embedded']))}?db={number}"
    if database.get("unix_socket_path"):
        return f"unix://{user}{quote(str(database['unix_socket_path']))}?db={number}"
    host = str(database.get("host") or "localhost")
    host = f"[{host}]" if ":" in host else host
    scheme = "rediss" if database.get("ssl") else "redis"
    return f"{scheme}://{user}{host}:{database.get('port') or 6379}/{number}"


# --- reading the name of a database ---


def hide_secret(argument: str) -> str:
    """An argument of a command line, without what may be a password: `--database=redis://***`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    if "@" not in value and "password" not in value.lower():
        return argument
    scheme, separator, _ = value.partition("://")
    return f"{option}{equals}{scheme}://***" if separator and scheme.isalpha() else f"{option}{equals}***"


def parse_database(text: str) -> Settings:
    """The settings that the name of a database stands for; nothing is opened or started.

    Returns:
        keyword arguments of `redis.Redis`; for an embedded database `embedded` (the directory) takes the place of
        `unix_socket_path`, and `client_settings` turns it into one.
    Raises:
        InvalidDatabaseURL: it is in none of the accepted forms.
    """
    if not isinstance(text, str):
        raise InvalidDatabaseURL(f"a {type(text).__name__}", "it must be a string")
    scheme, separator, rest = text.partition("://")
    readers = {"redis": _read_tcp, "rediss": _read_tls, "unix": _read_unix, "embedded": _read_embedded}
    if not separator:
        return _read_version_2(text)
    if scheme not in readers:
        shown = f"{scheme}://{HIDDEN}" if re.fullmatch(r"[a-z]{1,12}", scheme) else HIDDEN
        raise InvalidDatabaseURL(
            shown, "it must begin with redis://, rediss://, unix:// or embedded://, or be host:port:db"
        )
    return readers[scheme](_Text(f"{scheme}://{HIDDEN}", rest))


class _Text:
    """What follows `scheme://`, and how it may be shown so far: nothing of it is safe before it is understood."""

    def __init__(self, shown: str, rest: str) -> None:
        self.shown = shown
        if re.search(r"[\x00-\x20\x7f#]", rest):
            self.refuse("spaces, control characters and # must be percent-encoded")
        if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
            self.refuse("each % must be followed by two hexadecimal digits (a % itself is %25)")
        self.body, _, self.query = rest.partition("?")
        if "@" in self.query:
            self.refuse("the characters ? and @ of a password must be percent-encoded (%3F, %40)")

    def refuse(self, reason: str) -> NoReturn:
        # from None: the parts that were being read could stand in the chained exception
        raise InvalidDatabaseURL(self.shown, reason) from None

    def decode(self, part: str, what: str) -> str:
        try:
            return unquote(part, errors="strict")
        except UnicodeDecodeError:
            self.refuse(f"the {what} is not UTF-8")

    def credentials(self, part: str) -> Settings:
        """Read `user:password`; both may be empty."""
        user, colon, password = part.partition(":")
        if not colon or "@" in part:
            self.refuse("before the @ there must be user:password, with each @ in them percent-encoded (%40)")
        decoded = {"username": self.decode(user, "user"), "password": self.decode(password, "password")}
        return {name: value for name, value in decoded.items() if value}

    def path(self, part: str) -> str:
        path = self.decode(part, "path")
        if path in ("", "/") or "\0" in path:
            self.refuse("a path is missing, or holds a NUL")
        return path

    def options(self, accepted: Mapping[str, Callable[[str], Any]]) -> Settings:
        """Read `name=value&...`."""
        found: Settings = {}
        for pair in self.query.split("&") if self.query else ():
            name, _, value = pair.partition("=")
            if name not in accepted:
                self.refuse(f"there is an unknown option; accepted: {', '.join(accepted)}")
            if name in found:
                self.refuse(f"the option {name} is given twice")
            try:
                found[name] = accepted[name](self.decode(value, f"option {name}"))
            except ValueError:
                self.refuse(f"the option {name} has a value that is not accepted")
        return found


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError
    return float(text)


def _boolean(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
        _one_of("true", "yes", "1", "false", "no", "0")(text.lower())
    ]


def _one_of(*accepted: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in accepted:
            raise ValueError
        return text

    return read


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError
    return text


OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": _number,
    "client_name": _not_empty,
    "health_check_interval": _number,
    "max_connections": _number,
    "protocol": lambda text: int(_one_of("2", "3")(text)),
    "socket_connect_timeout": _seconds,
    "socket_keepalive": _boolean,
    "socket_timeout": _seconds,
}
CREDENTIALS: dict[str, Callable[[str], Any]] = {"username": _not_empty, "password": _not_empty}
TLS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": _not_empty,
    "ssl_ca_path": _not_empty,
    "ssl_cert_reqs": _one_of("none", "optional", "required"),
    "ssl_certfile": _not_empty,
    "ssl_check_hostname": _boolean,
    "ssl_keyfile": _not_empty,
    "ssl_password": _not_empty,
}


def _read_tcp(text: _Text, accepted: Mapping[str, Callable[[str], Any]] | None = None) -> Settings:
    authority, _, number = text.body.partition("/")
    if "@" in number:
        text.refuse("the character / of a password must be percent-encoded (%2F)")
    user, at, address = authority.rpartition("@")
    credentials = text.credentials(user) if at else {}
    settings = {**_read_address(text, address), "db": _read_db(text, number)}
    if at:  # all that could be a password was before the @
        text.shown = show_database({**settings, **credentials, "ssl": text.shown.startswith("rediss")})
    options = text.options(accepted or {**OPTIONS, **CREDENTIALS})
    if number and "db" in options:
        text.refuse("the db is given twice, as path and as option")
    return {**settings, **_joined(text, credentials, options)}


def _read_tls(text: _Text) -> Settings:
    return {**_read_tcp(text, {**OPTIONS, **CREDENTIALS, **TLS_OPTIONS}), "ssl": True}


def _read_unix(text: _Text) -> Settings:
    before, slash, path = text.body.partition("/")
    credentials: Settings = {}
    if before:
        if not before.endswith("@") or "@" in path:
            text.refuse(
                "it must be unix:///path, or unix://user:password@/path with / and @ percent-encoded (%2F, %40)"
            )
        credentials = text.credentials(before[:-1])
    settings = {"unix_socket_path": text.path(slash + path), "db": 0}
    return {**settings, **_joined(text, credentials, text.options({**OPTIONS, **CREDENTIALS}))}


def _read_embedded(text: _Text) -> Settings:
    if not text.body.startswith("/"):
        text.refuse("the directory must be absolute: embedded:///directory")
    return {"embedded": text.path(text.body), "db": 0, **text.options(OPTIONS)}


def _read_version_2(text: str) -> Settings:
    """Read `host:port:db`. What is no host, port or db is not shown, as nobody knows what it is."""
    match = re.fullmatch(r"(.*):([^:]*):([^:]*)", text, re.DOTALL)
    if not match:
        raise InvalidDatabaseURL(HIDDEN, "it must be a URL (redis://host:port/db) or host:port:db")
    host, port, number = match.groups()
    shown = ":".join(
        part if known else HIDDEN
        for part, known in (
            (host, _is_host(host)),
            (port, _is_port(port)),
            (number, re.fullmatch("[0-9]{1,5}", number)),
        )
    )
    reader = _Text(shown, "")
    address = _read_address(reader, f"{host}:{port}")
    return {**address, "db": _read_db(reader, number or HIDDEN)}


def _read_address(text: _Text, address: str) -> Settings:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([^:]*))?", address)
    if not match or not _is_host(match[1]):
        text.refuse("the host must be a name or an address (an IPv6 address in brackets)")
    if match[2] is not None and not _is_port(match[2]):
        text.refuse("the port must be a number from 1 to 65535")
    return {"host": match[1].strip("[]"), "port": int(match[2] or 6379)}


def _read_db(text: _Text, number: str) -> int:
    try:
        return _number(number) if number else 0
    except ValueError:
        text.refuse("the db must be a number")


def _joined(text: _Text, credentials: Settings, options: Settings) -> Settings:
    if credentials.keys() & options.keys():
        text.refuse("the user or the password is given twice")
    return {**credentials, **options}


def _is_host(text: str) -> bool:
    if text.startswith("["):
        try:
            return bool(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            return False
    return bool(re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", text))


def _is_port(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


# --- using it ---


def client_settings(settings: Mapping[str, Any]) -> Settings:
    """The settings as keyword arguments of `redis.Redis`; an embedded database becomes its socket."""
    found = dict(settings)
    directory = found.pop("embedded", None)
    if directory is not None:
        found["unix_socket_path"] = embedded.socket_path(directory)
    return found


def is_outage(error: BaseException) -> bool:
    """Is it Redis that cannot be used now, so that the same call may succeed later?

    No connection or no reply, a server that loads its data or runs a long script, a replica, no memory, no disk.
    """
    if isinstance(error, DatabaseException):  # the first use of a database
        return error.__cause__ is not None and is_outage(error.__cause__)
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, *OUTAGE_CLASSES)):
        return True
    return isinstance(error, redis.ResponseError) and OUTAGE_CODES.search(str(error)) is not None


def is_replica_error(error: BaseException) -> bool:
    """Does a server say that it is a replica?"""
    kinds = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)
    return isinstance(error, kinds) or "READONLY" in str(error)


def leave_replica(database: Any, error: BaseException) -> None:
    """Close the connections to a replica: it was the master, and behind a name or a proxy there is another one now."""
    if is_replica_error(error):
        pool = database.connection.connection_pool
        wire.release_spares(pool)
        pool.disconnect(inuse_connections=False)


def new_client(settings: Mapping[str, Any], **changes: Any) -> redis.Redis:
    """A client of its own for a database; it has no connection yet.

    Each socket has a timeout and keepalive, so that a connection to a machine that is gone does not hang; one that was
    idle is tried first. Texts that are not UTF-8 are read with surrogates, rather than not at all. redis-py repeats a
    command once, at once, when the connection breaks: it may be an old one.

    RESP2, unless the settings say otherwise: redis-py 8 would choose RESP3, where some replies have other types than in
    redis-py 5 to 7.
    """
    wanted = {**client_settings(settings), **changes}
    client = redis.Redis(**{**_client_defaults(wanted), **wanted, "decode_responses": True})
    if "embedded" in settings:
        attributes = {"embedded_directory": settings["embedded"]}
        client.connection_pool.connection_class = type("EmbeddedConnection", (_EmbeddedConnection,), attributes)
    return client


def _client_defaults(settings: Settings) -> Settings:
    # redis-py 5 would not check the name in a certificate
    checks = {"ssl_check_hostname": settings.get("ssl_cert_reqs") != "none"} if settings.get("ssl") else {}
    return {
        **checks,
        "protocol": 2,
        "encoding_errors": "surrogateescape",
        "socket_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": CHECK_TIMEOUT_SECONDS,
        "socket_keepalive": True,
        "socket_keepalive_options": {
            getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)
        },
        "health_check_interval": HEALTH_CHECK_SECONDS,
        "max_connections": 2**31,  # as redis-py 5 to 7: 100, as in 8, are fewer than a worker may have threads
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),  # type: ignore[no-untyped-call,unused-ignore]
        "retry_on_error": [redis.ConnectionError],
    }


class _EmbeddedConnection(redis.UnixDomainSocketConnection):
    """Starts the server of an embedded database again when it was killed.

    Then its socket is still there, with nobody behind it. A server that was stopped removes it, and stays stopped.
    """

    embedded_directory = ""

    def _connect(self) -> Any:
        try:
            return super()._connect()  # type: ignore[no-untyped-call,unused-ignore]
        except ConnectionRefusedError:
            try:
                embedded.start(self.embedded_directory)
            except EmbeddedServerError as error:
                raise redis.ConnectionError(str(error)) from error
            return super()._connect()  # type: ignore[no-untyped-call,unused-ignore]


def embedded_directory_of(connection_class: type) -> str | None:
    """The directory of the embedded server that connections of a class lead to; None for any other server."""
    return connection_class.embedded_directory if issubclass(connection_class, _EmbeddedConnection) else None


def check_server(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The version of a server that answers, over a connection that is closed again; an embedded server is started.

    Raises:
        DatabaseException: the server does not run, or refuses the password or the db.
        ServerTooOld: it runs, but lacks commands that the scripts need.
    """
    if settings.get("embedded") is not None:
        embedded.start(settings["embedded"])
    limits = {
        name: settings.get(name) or CHECK_TIMEOUT_SECONDS for name in ("socket_timeout", "socket_connect_timeout")
    }
    # no retries: whoever connects wants to know now
    client = new_client(settings, **limits, health_check_interval=0, retry=Retry(NoBackoff(), 0))
    try:
        return _supported_version(str(client.info("server").get("redis_version")))
    except (redis.RedisError, OSError, UnicodeError) as error:
        reason = _without_secrets(" ".join(str(error).split()), settings)
        message = f"Unable to use the database {show_database(settings)}: {reason}"
        # A server may quote its arguments, and so the password, in an error: then that error is not chained.
        raise DatabaseException(message) from (error if HIDDEN not in reason else None)
    finally:
        client.close()


def _supported_version(found: str) -> tuple[int, ...]:
    version = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if version < MINIMUM_VERSION:
        raise ServerTooOld(found, ".".join(map(str, MINIMUM_VERSION)))
    return version


def _without_secrets(text: str, settings: Mapping[str, Any]) -> str:
    for name in SECRETS:
        secret = settings.get(name)
        if secret:
            text = text.replace(str(secret), HIDDEN)
    return text


class JobsDatabase(PipelineDatabase):
    """The database of all models of limpyd_jobs: `BaseJobsModel.database`.

    Like limpyd's, it connects at the first use, to localhost:6379, db 0, unless it was told another place:

        BaseJobsModel.database.connect("redis://:secret@redis.example.com/2")
        BaseJobsModel.database.connect(host="redis.example.com", port=6379, db=2)

    Unlike limpyd's, `connect` moves the models that are on this database to the new place. `connection_settings` are
    the settings in force, as keyword arguments of `redis.Redis`.
    """

    connection_settings: Settings
    embedded_directory: str | None

    def __init__(self, database: str | None = None, **settings: Any) -> None:
        """Args: as for `connect`; nothing is opened yet."""
        super().__init__(**_read_settings(database, settings))

    def __str__(self) -> str:
        return show_database(self._settings())

    def connect(self, database: str | None = None, **settings: Any) -> redis.Redis:
        """Use another server or db from now on, for all models on this database, and give the client for it.

        The new server is asked for its version first; when it cannot be used, everything stays as it was. The former
        one is not contacted. An embedded server that is down is started. Without arguments: a client for the settings
        in force.

        Args:
            database: a name, see the top of this module; also as `url`.
            settings: what `redis.Redis` takes (`host`, `port`, `db`, `password`...); they win over those of the name.
        Raises:
            InvalidDatabaseURL: the name cannot be read.
            DatabaseException: the server cannot be used (ServerTooOld, EmbeddedServerError, or it says why).
        """
        wanted = _read_settings(database, settings)
        if wanted:
            version = check_server(wanted)
            self.reset(**wanted)
            self._connections.setdefault(_cache_key(self._settings()), new_client(self._settings()))
            self._redis_version = version
            client: redis.Redis = self.connection
            return client
        return self._current_client()

    def reset(self, database: str | None = None, **settings: Any) -> None:
        """Use other settings from the next command on; nothing is opened or checked. Args: as for `connect`."""
        wanted = _read_settings(database, settings)
        self.embedded_directory = wanted.get("embedded")
        self.__dict__.pop("_redis_version", None)  # limpyd remembers it for ever
        super().reset(**client_settings(wanted))

    def ensure_redis_versions(self) -> None:
        """Raise ServerTooOld when the server lacks what our scripts need."""
        _supported_version(".".join(map(str, self.redis_version)))

    def _current_client(self) -> redis.Redis:
        key = _cache_key(self._settings())
        if self.embedded_directory is not None:
            embedded.start(self.embedded_directory)  # it may have been killed since
        if key not in self._connections:
            version = check_server(self._settings())
            self._connections[key] = new_client(self._settings())
            self._redis_version = version
        client: redis.Redis = self._connections[key]
        return client

    def _settings(self) -> Settings:
        """The settings in force, with the directory of an embedded database."""
        if self.embedded_directory is None:
            return self.connection_settings
        return {**self.connection_settings, "embedded": self.embedded_directory}


def _read_settings(database: str | None, settings: Settings) -> Settings:
    """The settings from the arguments of `connect`."""
    url = settings.pop("url", None)
    if database is not None and url is not None:
        raise InvalidDatabaseURL(show_database(url), "it is given twice, as first argument and as `url`")
    name = url if database is None else database
    return {**(parse_database(name) if name is not None else {}), **settings}


def _cache_key(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The key of a client in limpyd's cache; with the names, so that two different settings never share a client."""
    return tuple((name, repr(settings[name])) for name in sorted(settings))


def connect_to(database: Any, settings: Mapping[str, Any]) -> None:
    """Bring the database of some models, which may be one of limpyd's own, to other settings, and look at its server.

    Args:
        settings: as `parse_database` gives them; empty: it stays where it is.
    Raises:
        DatabaseException: the server cannot be used.
    """
    if isinstance(database, JobsDatabase):
        database.connect(**settings)
        return
    # one of limpyd's own, given to `use_database`: its `connect` moves nothing
    check_server(settings or database.connection_settings)
    if settings:
        database.reset(**client_settings(settings))
