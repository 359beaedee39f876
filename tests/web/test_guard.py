"""Who may ask: Host, Origin and token; and no path outside the folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import Command

from oneshotgan.web.guard import HEADERS
from web.conftest import Serve, Server, ended

# --- Host and Origin ---


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil:{port}", "",
     "127.0.0.1:{port}@evil.example", "evil@127.0.0.1:{port}", "[::1", "192.168.0.1:{port}",
     "127.0.0.1:{port}/x"],
)  # fmt: skip
def test_a_foreign_name_is_refused(shared: Server, host: str) -> None:
    reply = shared("/", headers={"Host": host.format(port=shared.host.split(":")[1])})
    assert reply.status in (400, 421)
    assert b"runs" not in reply.body


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_its_own_names_are_known(shared: Server, host: str) -> None:
    assert shared("/", headers={"Host": host.format(port=shared.host.split(":")[1])}).status == 200


ACTIONS = ("/trainings?name=a.png", "/favourites.zip", "/runs/one/stop", "/runs/one/go-on")


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://{host}"},
        {"Origin": "http://{host}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_sites_request_changes_nothing(shared: Server, path: str, headers: dict[str, str]) -> None:
    sent = {name: value.format(host=shared.host) for name, value in headers.items()}
    assert shared.post(path, b"{}", **sent).status == 403


@pytest.mark.parametrize("path", ACTIONS)
def test_a_request_that_changes_something_says_where_it_comes_from(shared: Server, path: str) -> None:
    import http.client

    connection = http.client.HTTPConnection(shared.host, timeout=10)
    connection.request("POST", path, body=b"{}")
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize("path", ["/runs/one/sample?seed=0", "/runs.json", "/runs/one/sheet/8"])
def test_another_site_cannot_embed_or_read(shared: Server, path: str) -> None:
    assert shared(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status == 403
    assert shared(path, headers={"Origin": "http://evil.example"}).status == 403
    assert "access-control-allow-origin" not in shared("/runs.json").headers


def test_a_link_from_another_site_may_lead_here(shared: Server) -> None:
    came = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert shared("/", headers=came).status == 200
    assert shared("/", headers=came | {"Sec-Fetch-Dest": "iframe"}).status == 403


@pytest.mark.parametrize("path", ["/", "/nothing", "/static/style.css", "/runs.json", "/runs/one/sheet/8"])
def test_every_answer_has_the_headers(shared: Server, path: str) -> None:
    headers = shared(path).headers
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_none(shared: Server, method: str) -> None:
    assert shared("/runs/one/", method, headers={"Origin": f"http://{shared.host}"}).status == 405
    assert shared("/runs/one/stop").status == 405


# --- the token ---


def test_another_host_needs_a_token(command: Command, tmp_path: Path) -> None:
    assert "--token" in command("serve", tmp_path, "--host", "0.0.0.0", "--port", 0).error
    assert "8 characters" in command("serve", tmp_path, "--host", "0.0.0.0", "--token", "short").error
    assert "8 characters" in command("serve", tmp_path, "--token", "").error


def test_the_token_opens_once_and_the_cookie_stays(serve: Serve) -> None:
    server = serve("--host", "0.0.0.0", "--token", "correct horse")
    assert server.address.endswith("/?token=correct%20horse")
    port = server.host.split(":")[1]
    local = {"Host": f"127.0.0.1:{port}"}
    for path in ("/", "/static/style.css", "/?token=wrong", "/?token=", "/runs.json"):
        reply = server(path, headers=local)
        assert reply.status == 401, path
        assert "set-cookie" not in reply.headers
    assert server("/", headers=local | {"Cookie": f"oneshotgan-{port}=correct horse"}).status == 401
    assert server("/", headers=local | {"Cookie": "broken\x01="}).status == 401
    assert server("/", headers=local | {"Cookie": f"oneshotgan-{port}={'0' * 64}"}).status == 401
    opened = server("/explore?token=correct+horse&run=a%2Fb", headers=local)
    assert opened.status == 303
    assert opened.headers["location"] == "/explore?run=a%2Fb"
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "horse" not in cookie
    known = local | {"Cookie": cookie.split(";")[0]}
    assert server("/", headers=known).status == 200
    assert server("/", headers=local | {"Authorization": "Bearer correct horse"}).status == 200
    assert (
        server("//evil.example/?token=correct+horse", headers=local).headers["location"] == "/evil.example/"
    )
    # Numbers and this machine's name are served, a name that may be pointed here is not.
    assert server("/", headers=known | {"Host": f"192.168.7.7:{port}"}).status == 200
    assert server("/", headers=known | {"Host": f"rebound.example:{port}"}).status == 421


# --- no path outside the folder ---

UP = ["..", "%2e%2e", "%2E%2E", "..%2f..", "%2e%2e%2f", "..%5c..", "..%00", "%c0%ae%c0%ae", ".%2e"]
ENDS = ("/", "/state", "/sheet/8", "/reals", "/sample?seed=0", "/model")


@pytest.mark.parametrize("end", ENDS)
def test_no_way_up_or_aside(shared: Server, trained_once: Path, end: str) -> None:
    outside = shared.root.parent / "outside"
    if not outside.exists():
        shutil.copytree(trained_once, outside)
        shutil.copytree(trained_once, shared.root / ".hidden")
        (shared.root / "linked").symlink_to(outside)
        (shared.root / "linked-inside").symlink_to(shared.root / "one")
    ways = [f"{up}/outside" for up in UP] + [f"one/{up}/{up}/outside" for up in UP]
    ways += [str(outside), "/" + str(outside), str(outside).replace("/", "%2F"), "more/../../outside"]
    ways += [".hidden", "linked", "linked-inside", "linked%2F", "./one", "one%2F..%2F..%2Foutside", "~", "."]
    for way in ways:
        reply = shared(f"/runs/{way}{end}")
        assert reply.status == 404, (way, end)
    assert [run["id"] for run in shared("/runs.json").json["runs"]] == ["more/two", "one"]
    assert shared(f"/runs/one{end}").status == 200
    assert shared(f"/runs/more/two{end}").status == 200


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_static_files_alone(shared: Server, path: str) -> None:
    reply = shared(path)
    assert reply.status == 404
    assert b"import" not in reply.body


def test_links_in_a_run_lead_nowhere(serve: Serve, trained_once: Path) -> None:
    server = serve()
    secret = server.root.parent / "secret.png"
    shutil.copy(trained_once / "reals.png", secret)
    for name in ("reals", "sheet", "folder", "weights"):
        shutil.copytree(trained_once, server.root / name)
    (server.root / "reals" / "reals.png").unlink()
    (server.root / "reals" / "reals.png").symlink_to(secret)
    (server.root / "sheet" / "samples" / "step-000008.png").unlink()
    (server.root / "sheet" / "samples" / "step-000008.png").symlink_to(secret)
    shutil.move(server.root / "folder" / "samples", server.root.parent / "samples")
    (server.root / "folder" / "samples").symlink_to(server.root.parent / "samples")
    shutil.move(server.root / "weights" / "model" / "model.safetensors", server.root.parent / "w.safetensors")
    (server.root / "weights" / "model" / "model.safetensors").symlink_to(server.root.parent / "w.safetensors")
    assert "is a link" in server("/runs/reals/").text
    for path in (
        "/runs/reals/reals",
        "/runs/sheet/sheet/8",
        "/runs/folder/sheet/8",
        "/runs/weights/sample?seed=0",
    ):
        assert server(path).status in (400, 404), path
    assert server("/runs/sheet/sheet/4").status == 200
    assert server("/").status == 200


def test_a_link_of_the_log_leads_nowhere(serve: Serve, trained_once: Path) -> None:
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    secret = server.root.parent / "secret.txt"
    secret.write_text("secret words\n")
    logs = server.root / ".oneshotgan-web" / "logs"
    logs.mkdir(parents=True)
    (logs / "one.log").symlink_to(secret)
    assert "secret words" not in server("/runs/one/").text


@pytest.mark.parametrize(
    "path",
    ["/runs/one/sheet/-1", "/runs/one/sheet/9", "/runs/one/sheet/x", "/runs/one/sheet/" + "9" * 5000,
     "/runs/one/sample?seed=-1", "/runs/one/sample?seed=1e3", "/runs/one/sample?seed=" + "9" * 30,
     "/runs/one/sample?seed=1&truncation=nan", "/runs/one/sample?seed=1&truncation=2",
     "/runs/one/sample?seed=1&toward=2&at=-0.1", "/runs/one/sample?seed=1&step=7", "/runs/one/model?step=7",
     "/runs/one/copy?frame=5&copy=0", "/runs/one/copy?frame=0&copy=99",
     "/runs/one/nearest?seeds=" + ",".join("1" * 80),
     "/runs/one/nearest?seeds=1,,2", "/runs/" + "a" * 3000 + "/", "/runs/one/part/nothing", "/nothing"],
)  # fmt: skip
def test_what_is_not_there_is_told(shared: Server, path: str) -> None:
    reply = shared(path)
    assert reply.status in (400, 404)
    assert reply.json["error"]
    assert str(shared.root) not in reply.text
    assert shared(path, headers={"Accept": "text/html"}).text.startswith("<!doctype html>")


# --- the command ---


def test_bad_calls_of_the_command(command: Command, shared: Server, tmp_path: Path) -> None:
    assert "no folder" in command("serve", tmp_path / "none").error
    assert "is a run" in command("serve", shared.root / "one").error
    assert "--port" in command("serve", tmp_path, "--port", shared.host.split(":")[1]).error
    assert "--port" in command("serve", tmp_path, "--port", 70000).error
    assert "--trainings" in command("serve", tmp_path, "--trainings", -1).error


def test_without_the_extra_one_line_says_what_to_do(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'oneshotgan[web]'" in command("serve", tmp_path).error


def test_ctrl_c_ends_it_and_its_worker(serve: Serve) -> None:
    server = serve()
    assert server("/").status == 200
    worker = server.worker()
    assert ended(server) == 130
    assert not os.path.exists(f"/proc/{worker}")
    assert (server.root.parent / "server.err").read_text() == ""
    assert json.dumps(list(server.root.iterdir())) == "[]"  # nothing is written by looking
