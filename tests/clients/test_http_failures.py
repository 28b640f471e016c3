import re
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.helpers.http_server import HttpServer, Sent
from tests.helpers.openai_server import free_port
from tests.helpers.waiting import GUARD_S, HANG_S, guarded
from zerosearch.clients.attempts import ServerFailure
from zerosearch.clients.http_failures import (
    call,
    checked_url,
    json_body,
    key_from_env,
    one_line,
    retry_after_s,
)
from zerosearch.clients.http_pool import open_client

SECRET = "sk-123"


async def fetch(url, *, timeout_s=GUARD_S):
    async with open_client(url) as client:
        request = client.build_request("POST", url, json={"q": 1})
        return await call(client, request, endpoint="the server", timeout_s=timeout_s)


async def failure_of(sent, **options):
    with HttpServer(lambda _: sent) as server, pytest.raises(ServerFailure) as failed:
        await fetch(server.url, **options)
    return failed.value


async def test_a_reply_is_read_whole():
    text = "ü" * 500_000  # a megabyte
    with HttpServer(lambda _: Sent(body={"text": text})) as server:
        response = await fetch(server.url)
    assert json_body(response, endpoint="x") == {"text": text}
    assert server.asked[0].body == {"q": 1}


# --- what goes wrong on the way ---


async def test_a_refused_connection_is_worth_another_attempt():
    with pytest.raises(
        ServerFailure, match=r"the server: connection failed .*is the server runn"
    ) as e:
        await fetch(f"http://127.0.0.1:{free_port()}")
    assert e.value.transient
    assert e.value.__cause__ is None


async def test_a_connection_that_breaks_in_the_body_is_worth_another_attempt():
    failure = await failure_of(Sent(body=b"x" * 100_000, reset_after=50_000))
    assert "the connection broke" in failure.reason
    assert failure.transient


async def test_a_server_that_hangs_is_left_in_time():
    with guarded():
        failure = await failure_of(Sent(delay_s=HANG_S), timeout_s=0.1)
    assert (failure.reason, failure.transient) == ("no reply within 0.1 s", True)


async def test_a_damaged_encoding_is_worth_another_attempt():
    failure = await failure_of(Sent(body=b"no gzip", headers={"Content-Encoding": "gzip"}))
    assert "the reply is damaged" in failure.reason
    assert failure.transient


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("the certificate is made with openssl, which is not installed")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, folder / "cert.pem"


async def test_an_unknown_certificate_is_final_and_a_trusted_one_is_not(self_signed, monkeypatch):
    context, certificate = self_signed
    with HttpServer(lambda _: Sent(body={}), tls=context) as server:
        with pytest.raises(ServerFailure, match=r"certificate is not trusted .*SSL_CERT_FILE") as e:
            await fetch(server.url)
        assert not e.value.transient
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert (await fetch(server.url)).status_code == 200


# --- what the server says ---


@pytest.mark.parametrize(
    ("status", "transient"),
    [(500, True), (502, True), (503, True), (429, True), (408, True)]
    + [(status, False) for status in (400, 401, 403, 404, 422)],
)
async def test_which_statuses_are_worth_another_attempt(status, transient):
    failure = await failure_of(Sent(status=status, body={"detail": "so\n it is"}))
    assert failure.reason == f'HTTP {status} ({{"detail": "so\\n it is"}})'
    assert failure.transient == transient
    assert failure.retry_after_s == 0.0


async def test_the_wait_a_server_asks_for_is_kept():
    failure = await failure_of(Sent(status=429, headers={"Retry-After": "7"}))
    assert (failure.reason, failure.retry_after_s) == ("HTTP 429", 7.0)


async def test_a_redirect_is_final_and_says_where_to():
    headers = {"Location": "https://other.org/retrieve?token=abc"}
    failure = await failure_of(Sent(status=301, headers=headers))
    assert failure.reason == "HTTP 301: it moved to https://other.org/retrieve; set the URL to that"
    assert not failure.transient


@pytest.mark.parametrize(
    ("body", "begins"),
    [
        (b"<html>\n Bad  gateway", "not JSON, it begins '<html> Bad gateway'"),
        (b"{", "not JSON, it begins '{'"),
        (b"[" * 100_000, "not JSON, it begins '[[["),
        (b"", "the reply is empty"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
async def test_a_reply_that_is_not_json_is_worth_another_attempt(body, begins):
    with HttpServer(lambda _: Sent(body=body)) as server:
        response = await fetch(server.url)
    with pytest.raises(ServerFailure) as failed:
        json_body(response, endpoint="e")
    assert begins in failed.value.reason
    assert len(failed.value.reason) < 200
    assert failed.value.transient


async def test_secrets_are_not_shown_also_where_the_server_repeats_them():
    with HttpServer(lambda _: Sent(status=401, body={"error": f"bad key {SECRET}"})) as server:
        async with open_client(server.url) as client:
            request = client.build_request("GET", server.url, params={"key": SECRET})
            with pytest.raises(ServerFailure) as failed:
                await call(client, request, endpoint="e", timeout_s=GUARD_S, secrets=[SECRET, ""])
    assert SECRET not in str(failed.value)
    assert "bad key ***" in failed.value.reason


# --- the parts ---


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), (" 12 ", 12.0), ("soon", 0.0), ("", 0.0), ("-1", 0.0), ("nan", 0.0)],
)
def test_retry_after_in_seconds(value, seconds):
    assert retry_after_s({"Retry-After": value}) == seconds
    assert retry_after_s({"retry-after": value}) == seconds


def test_retry_after_as_a_date():
    soon = datetime.now(UTC) + timedelta(hours=1)
    for date in (format_datetime(soon, usegmt=True), format_datetime(soon.replace(tzinfo=None))):
        assert 3600 - GUARD_S < retry_after_s({"Retry-After": date}) <= 3600
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after_s({}) == 0.0


def test_long_texts_are_cut():
    assert one_line("a\n\tb") == "a b"
    assert len(one_line("x" * 10**6)) < 310


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("http://127.0.0.1:8000/retrieve/", "http://127.0.0.1:8000/retrieve"),
        (" https://host ", "https://host"),
        ("http://[::1]:80/a/b", "http://[::1]:80/a/b"),
    ],
)
def test_a_good_url_loses_only_its_last_slash(url, checked):
    assert checked_url("url", url) == checked


@pytest.mark.parametrize(
    "url", ["", "host:80", "ftp://host", "http://", "http://h:99999", "http://[::1", "h"]
)
def test_what_is_no_url_is_shown(url):
    with pytest.raises(ValueError, match=re.escape(f"url={url!r} is no URL")):
        checked_url("url", url)


@pytest.mark.parametrize("url", ["http://me:sk-123@h", "http://h/?key=sk-123", "http://h/#sk-123"])
def test_a_url_that_may_hold_a_secret_is_not_shown(url):
    with pytest.raises(ValueError, match="url: the URL holds") as refused:
        checked_url("url", url)
    assert SECRET not in str(refused.value)


def test_a_key_with_characters_no_header_may_have_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("RETRIEVER_KEY", f" {SECRET}\n")
    assert key_from_env("RETRIEVER_KEY") == SECRET
    monkeypatch.delenv("RETRIEVER_KEY")
    assert key_from_env("RETRIEVER_KEY") == ""
    monkeypatch.setenv("RETRIEVER_KEY", f"{SECRET}\nX: 1")
    with pytest.raises(ValueError, match="RETRIEVER_KEY") as refused:
        key_from_env("RETRIEVER_KEY")
    assert SECRET not in str(refused.value)
