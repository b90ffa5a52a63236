"""The values in the body of a request: a small JSON object, of which nothing strange is passed on."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

MAX_VALUES_BYTES = 64 << 10
MAX_DEPTH = 16
MAX_NUMBER = 2.0**53  # beyond it JavaScript does not count any more


async def read_values(request: Request, most: int = MAX_VALUES_BYTES) -> dict[str, Any]:
    """The JSON object in a request's body, of at most ``most`` bytes; nothing counts as ``{}``.

    ``HTTPException`` with a sentence: 413 for a longer body, 400 if it is something else than names and
    values, nested deeper than ``MAX_DEPTH``, or holds a number beyond 2^53, NaN or half a letter.
    """
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise HTTPException(413, "The request is too long.")
    except ClientDisconnect:
        raise HTTPException(400, "The request broke off.") from None
    try:
        return parse_values(body or b"{}")
    except ValueError as error:
        raise HTTPException(400, f"The request is not understood: {error}.") from None


def parse_values(content: bytes) -> dict[str, Any]:
    """The JSON object that ``content`` is; ``ValueError`` says what is wrong, as ``read_values``."""
    try:
        values = json.loads(content, parse_int=_whole, parse_float=_number, parse_constant=_number)
        deep = isinstance(values, dict) and _depth(values) > MAX_DEPTH
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON from its character {error.pos + 1} on") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except RecursionError:
        deep = True
    if deep:
        raise ValueError("it is nested too deeply")
    if not isinstance(values, dict):
        raise ValueError("it must hold names and values")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # one of a pair of surrogates
        raise ValueError("it holds half a letter") from None
    return values


def _whole(digits: str) -> int:
    _number(digits)
    return int(digits)


def _number(text: str) -> float:
    number = float(text)  # it knows NaN and Infinity too
    if not abs(number) <= MAX_NUMBER:
        raise ValueError(f"{text[:20]} is no number to count with")
    return number


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


async def answer_error(_: Request, error: Exception) -> Response:
    """What is answered to a request that cannot be met: ``{"error": sentence}``."""
    if not isinstance(error, HTTPException):
        return JSONResponse({"error": "This did not work; what it was is in the log of the server."}, 500)
    sentence = error.detail
    if sentence == HTTPStatus(error.status_code).phrase:  # the router's own
        sentence = "This cannot be done here." if error.status_code == 405 else "There is nothing here."
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


ERRORS: dict[Any, Any] = {HTTPException: answer_error, Exception: answer_error}  # handlers for an application
