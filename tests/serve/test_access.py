from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgesmith.errors import UsageError
from serve.access import Access, MisdirectedError, is_loopback, parse_keys, read_keys, read_keys_variable
from serve.errors import ForbiddenError, UnauthorizedError


def check(access: Access, level: str, method: str = "POST", **headers: str) -> None:
    values = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    access.check(level, method, values.get)  # type: ignore[arg-type]


def test_any_key_opens_user_routes_in_either_header() -> None:
    access = Access(api_keys=["one", "two"], admin_token="root")
    for headers in (
        {"authorization": "Bearer one"},
        {"authorization": "bearer two"},
        {"x_api_key": "two"},
        {"authorization": "Basic abc", "x_api_key": "one"},
        {"authorization": "Bearer root"},
    ):
        check(access, "user", **headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer on"},
        {"authorization": "Bearer onetwo"},
        {"authorization": "one"},
        {"authorization": "Basic one"},
        {"x_api_key": ""},
        {"authorization": "Bearer wrong", "x_api_key": "one"},
    ],
)
def test_wrong_or_no_key_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UnauthorizedError):
        check(Access(api_keys=["one", "two"]), "user", **headers)


def test_without_keys_users_need_none() -> None:
    check(Access(), "user")


def test_admin_routes_are_off_without_a_token_and_ask_for_it_with_one() -> None:
    with pytest.raises(ForbiddenError, match="switched off") as caught:
        check(Access(api_keys=["one"]), "admin", authorization="Bearer one")
    assert "admin token" in caught.value.mend
    access = Access(api_keys=["one"], admin_token="root")
    check(access, "admin", authorization="Bearer root")
    for headers in ({}, {"authorization": "Bearer one"}, {"x_api_key": "roo"}):
        with pytest.raises(UnauthorizedError):
            check(access, "admin", **headers)


def test_open_routes_pass_whatever_comes() -> None:
    access = Access.for_host("127.0.0.1", api_keys=["one"], admin_token="root")
    check(access, "open", host="evil.example", origin="http://evil.example")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"]
)
def test_loopback_answers_to_its_own_names(host: str) -> None:
    access = Access.for_host("127.0.0.1")
    for _ in range(2):
        check(access, "user", host=host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "localhost/",
     "127.0.0.2", "[::2]", "localhost:port", "[::1", "evil.example:80#localhost", "localhost\\.evil.example"],
)  # fmt: skip
def test_loopback_refuses_other_names(host: str) -> None:
    access = Access.for_host("127.0.0.1")
    for _ in range(2):
        with pytest.raises(MisdirectedError, match="this server is not"):
            check(access, "user", host=host)


def test_names_that_are_allowed_pass() -> None:
    access = Access.for_host("127.0.0.1", allowed_hosts=["Models.Example"])
    check(access, "user", host="models.example:8000")
    check(Access.for_host("0.0.0.0"), "user", host="any.example")


def test_scripts_of_foreign_pages_change_nothing() -> None:
    access = Access(origins=["https://friend.example"])
    check(access, "user", host="box:8000")
    check(access, "user", host="box:8000", origin="http://box:8000")
    check(access, "user", host="box:8000", origin="https://friend.example")
    check(access, "user", "GET", host="box:8000", origin="https://evil.example")
    for origin in ("https://evil.example", "null", "http://box", "http://box:8001", "https://friend.example.evil"):
        with pytest.raises(ForbiddenError, match="web page"):
            check(access, "user", host="box:8000", origin=origin)


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost", True), ("127.1.2.3", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_keys_are_read_line_by_line() -> None:
    assert parse_keys("# team a\n\n  one \ntwo\n", source="x") == ("one", "two")


@pytest.mark.parametrize("text", ["", "# nothing\n", "two words\n", "schlüssel\n", "tab\tbed\n"])
def test_text_without_usable_keys_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"keys\.txt"):
        parse_keys(text, source="keys.txt")


@pytest.mark.skipif(os.name != "posix", reason="files have no modes here")
def test_file_that_everybody_reads_is_refused_with_a_mend(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n")
    for mode in (0o600, 0o640):
        path.chmod(mode)
        assert read_keys(path) == ("one",)
    for mode in (0o644, 0o602):
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"mode {mode:04o}") as caught:
            read_keys(path)
        assert caught.value.mend == f"chmod o= {path}"


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read_keys(tmp_path / "nowhere")


def test_keys_come_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", "one,two\nthree")
    assert read_keys_variable("SOME_KEYS") == ("one", "two", "three")
    monkeypatch.delenv("SOME_KEYS")
    with pytest.raises(UsageError, match="SOME_KEYS is not set"):
        read_keys_variable("SOME_KEYS")
