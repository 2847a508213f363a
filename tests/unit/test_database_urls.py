"""The names of databases: what each stands for, what is refused, and that no password is ever shown."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from limpyd_jobs.database import (
    JobsDatabase,
    client_settings,
    default_database,
    new_client,
    parse_database,
    show_database,
)
from limpyd_jobs.exceptions import InvalidArgument, InvalidDatabaseURL, LimpydJobsException

LOCAL = {"host": "localhost", "port": 6379, "db": 0}

GOOD = [
    ("redis://localhost", LOCAL),
    ("redis://localhost/", LOCAL),
    ("redis://localhost:6379/0", LOCAL),
    ("redis://redis.example.com:7000/12", {"host": "redis.example.com", "port": 7000, "db": 12}),
    ("redis://10.0.0.7/3", {"host": "10.0.0.7", "port": 6379, "db": 3}),
    ("redis://my_redis-1", {**LOCAL, "host": "my_redis-1"}),
    ("redis://[::1]:7000/1", {"host": "::1", "port": 7000, "db": 1}),
    ("redis://[2001:db8::7]", {**LOCAL, "host": "2001:db8::7"}),
    ("redis://localhost?db=4", {**LOCAL, "db": 4}),
    ("redis://localhost/?db=4", {**LOCAL, "db": 4}),
    ("redis://user:secret@localhost/1", {**LOCAL, "db": 1, "username": "user", "password": "secret"}),
    ("redis://:secret@localhost", {**LOCAL, "password": "secret"}),
    ("redis://user:@localhost", {**LOCAL, "username": "user"}),
    ("redis://user:with:colon@localhost", {**LOCAL, "username": "user", "password": "with:colon"}),
    (
        "redis://us%3Aer:p%40ss%2Fw%25rd%20%C3%A9@localhost",
        {**LOCAL, "username": "us:er", "password": "p@ss/w%rd é"},
    ),
    ("redis://localhost?password=s%26cret&username=user", {**LOCAL, "username": "user", "password": "s&cret"}),
    (
        "redis://localhost?socket_timeout=2.5&socket_keepalive=yes&max_connections=7&protocol=3&client_name=me",
        {
            **LOCAL,
            "socket_timeout": 2.5,
            "socket_keepalive": True,
            "max_connections": 7,
            "protocol": 3,
            "client_name": "me",
        },
    ),
    (
        "redis://localhost?health_check_interval=30&socket_connect_timeout=1",
        {**LOCAL, "health_check_interval": 30, "socket_connect_timeout": 1.0},
    ),
    ("rediss://localhost", {**LOCAL, "ssl": True}),
    (
        "rediss://user:secret@host:6380/1",
        {"host": "host", "port": 6380, "db": 1, "username": "user", "password": "secret", "ssl": True},
    ),
    (
        "rediss://localhost?ssl_cert_reqs=none&ssl_ca_certs=/etc/my%20ca.pem&ssl_check_hostname=0",
        {**LOCAL, "ssl": True, "ssl_cert_reqs": "none", "ssl_ca_certs": "/etc/my ca.pem", "ssl_check_hostname": False},
    ),
    (
        "rediss://localhost?ssl_certfile=/a&ssl_keyfile=/b&ssl_password=c&ssl_ca_path=/d",
        {**LOCAL, "ssl": True, "ssl_certfile": "/a", "ssl_keyfile": "/b", "ssl_password": "c", "ssl_ca_path": "/d"},
    ),
    ("unix:///run/redis.sock", {"unix_socket_path": "/run/redis.sock", "db": 0}),
    ("unix:///run/redis.sock?db=3", {"unix_socket_path": "/run/redis.sock", "db": 3}),
    ("unix:///run/a@b%20c.sock", {"unix_socket_path": "/run/a@b c.sock", "db": 0}),
    (
        "unix://user:secret@/run/redis.sock?db=3",
        {"unix_socket_path": "/run/redis.sock", "db": 3, "username": "user", "password": "secret"},
    ),
    ("unix:///run/redis.sock?password=secret", {"unix_socket_path": "/run/redis.sock", "db": 0, "password": "secret"}),
    ("embedded:///var/lib/shop", {"embedded": "/var/lib/shop", "db": 0}),
    ("embedded:///var/lib/my%20shop?db=2", {"embedded": "/var/lib/my shop", "db": 2}),
    ("localhost:6379:0", LOCAL),
    ("redis.example.com:7000:12", {"host": "redis.example.com", "port": 7000, "db": 12}),
    ("[::1]:6379:2", {"host": "::1", "port": 6379, "db": 2}),
]

BAD = [
    "",
    " ",
    "localhost",
    "localhost:6379",
    "localhost:6379:",
    "localhost::0",
    ":6379:0",
    "localhost:port:0",
    "localhost:0:0",
    "localhost:65536:0",
    "localhost:6379:-1",
    "localhost:6379:x",
    "localhost:6379:0:1",
    "::1:6379:0",
    "local host:6379:0",
    "localhost:6379:0\n",
    "user:secret@localhost:6379:0",
    "http://localhost",
    "REDIS://localhost",
    "://localhost",
    "redis:/localhost",
    "redis:localhost",
    "redis://",
    "redis:///0",
    "redis://:6379/0",
    "redis://localhost:",
    "redis://localhost:port",
    "redis://localhost:99999",
    "redis://localhost:٣",
    "redis://localhost/x",
    "redis://localhost/-1",
    "redis://localhost/0/",
    "redis://localhost/9999999999",
    "redis://localhost/1?db=1",
    "redis://localhost?db=",
    "redis://localhost?db=x",
    "redis://localhost?db=1&db=2",
    "redis://localhost?unknown=1",
    "redis://localhost?ssl_cert_reqs=none",
    "redis://localhost?socket_timeout=fast",
    "redis://localhost?socket_timeout=-1",
    "redis://localhost?socket_timeout=nan",
    "redis://localhost?socket_keepalive=maybe",
    "redis://localhost?protocol=4",
    "redis://localhost#fragment",
    "redis://local host",
    "redis://localhost\n",
    "redis://localhost\t/0",
    "redis://[::1/0",
    "redis://[::zz]/0",
    "redis://::1/0",
    "redis://..",
    "redis://user@localhost",
    "redis://user:secret@",
    "redis://user:sec@ret@localhost",
    "redis://user:sec/ret@localhost",
    "redis://user:sec?ret@localhost",
    "redis://user:sec#ret@localhost",
    "redis://user:sec%ret@localhost",
    "redis://user:%FF@localhost",
    "redis://user:secret@localhost?password=other",
    "redis://localhost?password=",
    "rediss://localhost?ssl_cert_reqs=sometimes",
    "unix://",
    "unix:///",
    "unix://run/redis.sock",
    "unix:///run/redis%00.sock",
    "unix:///run/redis.sock?db=x",
    "unix://user@/run/redis.sock",
    "unix://user:sec/ret@/run/redis.sock",
    "embedded://",
    "embedded:///",
    "embedded://data",
    "embedded://user:secret@/data",
    "embedded:///data?password=secret",
    "embedded:///data?db=x",
]


@pytest.mark.parametrize(("text", "settings"), GOOD)
def test_each_accepted_form_gives_the_settings_of_a_client(text: str, settings: dict[str, object]) -> None:
    assert parse_database(text) == settings


@pytest.mark.parametrize(("text", "settings"), GOOD)
def test_the_settings_are_what_redis_py_takes(text: str, settings: dict[str, object]) -> None:
    client = new_client(parse_database(text))

    connection = client.connection_pool.connection_kwargs
    assert connection["db"] == settings["db"]
    assert connection["decode_responses"] is True


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidDatabaseURL) as caught:
        parse_database(text)

    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Invalid database ")


@pytest.mark.parametrize("text", BAD)
def test_what_is_refused_never_shows_a_secret(text: str) -> None:
    with pytest.raises(InvalidDatabaseURL) as caught:
        parse_database(text)

    assert "secret" not in str(caught.value)
    for part in ("sec", "ret"):
        assert part not in str(caught.value.value)
        assert part not in show_database(text)


@pytest.mark.parametrize("value", [None, 6379, b"redis://localhost", ("localhost", 6379, 0)])
def test_only_strings_are_names(value: object) -> None:
    with pytest.raises(InvalidDatabaseURL, match="must be a string"):
        parse_database(value)  # type: ignore[arg-type]


def test_the_error_is_one_of_ours_and_a_value_error() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_database("nonsense")

    assert isinstance(caught.value, (LimpydJobsException, ValueError))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("redis://localhost:port", "the port must be a number from 1 to 65535"),
        ("redis://localhost/x", "the db must be a number"),
        ("redis://", "the host must be a name or an address"),
        ("http://localhost", "it must begin with redis://"),
        ("localhost", "redis://host:port/db"),
        ("redis://localhost?x=1", "unknown option; accepted: db, "),
        ("redis://user:a@b@localhost", "%40"),
        ("embedded://data", "must be absolute"),
        ("redis://user:a%b@localhost", "%25"),
    ],
)
def test_the_reason_says_what_is_accepted(text: str, reason: str) -> None:
    with pytest.raises(InvalidDatabaseURL) as caught:
        parse_database(text)

    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:6379:0", "redis://localhost:6379/0"),
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://user:secret@host:7000/1", "redis://user:***@host:7000/1"),
        ("redis://:secret@host", "redis://:***@host:6379/0"),
        ("redis://host?password=secret", "redis://:***@host:6379/0"),
        ("rediss://user:secret@[::1]:7000/1?ssl_password=secret", "rediss://user:***@[::1]:7000/1"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock?db=0"),
        ("unix://user:secret@/run/my%20redis.sock?db=3", "unix://user:***@/run/my%20redis.sock?db=3"),
        ("embedded:///var/lib/shop", "embedded:///var/lib/shop?db=0"),
        ("redis://user:secret@host:7000/x", "redis://***"),
        ("redis://user:secret@host:7000/1?x=y", "redis://user:***@host:7000/1"),
        ("localhost:port:0", "localhost:***:0"),
        ("secret", "***"),
        ("secret://host", "secret://***"),
    ],
)
def test_a_database_is_shown_without_its_password(text: str, shown: str) -> None:
    assert show_database(text) == shown


def test_settings_are_shown_like_names() -> None:
    assert show_database({}) == "redis://localhost:6379/0"
    assert show_database({"host": "h", "port": "7", "db": 1, "password": "secret"}) == "redis://:***@h:7/1"
    assert show_database({"unix_socket_path": "/s", "username": "u", "password": "secret"}) == "unix://u:***@/s?db=0"


@pytest.mark.parametrize("text", [text for text, _ in GOOD])
def test_what_is_shown_of_a_database_without_password_names_it_again(text: str) -> None:
    settings = parse_database(text)
    has_no_secret = {"password", "ssl_password", "username"}.isdisjoint(settings)

    if has_no_secret:
        again = parse_database(show_database(text))
        assert {name: again.get(name) for name in again} == {name: settings.get(name) for name in again}


@pytest.mark.parametrize("variable", [None, "", "redis://elsewhere:7/1"])
def test_the_commands_take_the_environment_variable_or_localhost(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is None:
        monkeypatch.delenv("LIMPYD_JOBS_DATABASE", raising=False)
    else:
        monkeypatch.setenv("LIMPYD_JOBS_DATABASE", variable)

    assert default_database() == (variable or "redis://localhost:6379/0")
    assert parse_database(default_database())["host"] == ("elsewhere" if variable else "localhost")


def test_an_embedded_database_becomes_a_socket_without_starting_anything() -> None:
    settings = client_settings(parse_database("embedded:///nowhere/at/all?db=2"))

    assert settings == {"unix_socket_path": "/nowhere/at/all/redis.sock", "db": 2}


# Long enough not to be a part of a message by chance.
PASSWORDS = st.text(min_size=1, max_size=20).map(lambda text: f"Zq{text}7X")


@given(password=PASSWORDS, user=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=5))
@example(password="Zq@7X", user="")
@example(password="Zq/?#[]:%7X", user="us:er")
def test_any_password_can_be_given_percent_encoded_and_is_never_shown(password: str, user: str) -> None:
    for place in ("redis://{}@host:7/1", "rediss://{}@host", "unix://{}@/run/redis.sock"):
        text = place.format(f"{quote(user, safe='')}:{quote(password, safe='')}")

        settings = parse_database(text)

        assert settings["password"] == password
        assert settings.get("username", "") == user
        shown = show_database(text)
        assert password not in shown
        assert quote(password, safe="") not in shown
        assert password not in str(JobsDatabase(text))


@given(
    password=st.text(st.sampled_from("aB3:/@?#[]%&= \n\t.-é"), min_size=1, max_size=12).map(lambda text: f"Zq{text}7X"),
    form=st.sampled_from(
        [
            "redis://user:{}@localhost:6379/0",
            "redis://:{}@localhost:6379/x",
            "redis://:{}",
            "redis://user:{}",
            "redis://user:{}@",
            "redis://user:{}@localhost:port",
            "redis://localhost:6379/{}@host",
            "redis://{}@localhost",
            "rediss://user:{}@localhost?x=1",
            "unix://user:{}@/run/redis.sock?x=1",
            "unix://:{}@run/redis.sock",
            "embedded://user:{}@/run?x=1",
            "redis://localhost?password={}&x=1",
            "user:{}@localhost:6379:0",
            ":{}@localhost:6379:x",
            "redis:/user:{}@localhost",
            "http://user:{}@localhost",
            "user:{}",
        ]
    ),
)
@example(password="Zq?7X", form="redis://user:{}@localhost:6379/0")
@example(password="Zq12/7X", form="redis://user:{}@localhost:6379/0")
def test_a_password_in_a_name_that_cannot_be_read_is_never_shown(password: str, form: str) -> None:
    text = form.format(password)
    try:
        parse_database(text)
    except InvalidDatabaseURL as error:
        message = str(error)
    else:
        assume(False)

    for part in (password, "Zq", "7X"):
        assert part not in message
        assert part not in show_database(text)
