from __future__ import annotations

import pytest

from serve.http.message import Request
from serve.http.router import MethodNotAllowedError, PathNotFoundError, Route, Router


def handler(_request: Request) -> None:
    raise AssertionError


def routes(*patterns: str) -> Router:
    return Router(Route(*pattern.split(" ", 1), handler) for pattern in patterns)


def test_parameters_take_whole_segments() -> None:
    router = routes("GET /v2/models/{model}/versions/{version}/infer")
    _, params = router.find("GET", "/v2/models/a.b/versions/1/infer")
    assert params == {"model": "a.b", "version": "1"}
    with pytest.raises(PathNotFoundError):
        router.find("GET", "/v2/models/a/b/versions/1/infer")
    with pytest.raises(PathNotFoundError):
        router.find("GET", "/v2/models//versions/1/infer")


def test_literal_wins_and_parameter_is_tried_next() -> None:
    router = routes("GET /m/{a}", "GET /m/all", "GET /{x}/only")
    assert router.find("GET", "/m/all")[0].pattern == "/m/all"
    assert router.find("GET", "/m/only") == (router.routes[0], {"a": "only"})
    assert router.find("GET", "/n/only") == (router.routes[2], {"x": "n"})


def test_methods_of_a_path_are_named() -> None:
    router = routes("GET /m", "POST /m")
    with pytest.raises(MethodNotAllowedError) as caught:
        router.find("PUT", "/m")
    assert caught.value.allow == "GET, HEAD, OPTIONS, POST"
    assert router.find("HEAD", "/m")[0].method == "GET"


def test_slash_at_the_end_makes_no_difference() -> None:
    router = routes("GET /", "GET /m")
    assert router.find("GET", "/m/")[0].pattern == "/m"
    assert router.find("GET", "/")[0].pattern == "/"


@pytest.mark.parametrize("patterns", [("GET /a", "GET /a"), ("GET /{a}", "GET /{b}"), ("GET a",)])
def test_routes_that_cannot_be_told_apart_are_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"two routes|slash"):
        routes(*patterns)
