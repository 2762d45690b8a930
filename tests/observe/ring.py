"""A ring of real processes for the scripts beside this file: Postgres, a sample upstream, N nodes.

Needs Postgres' binaries (PG_BIN, or /usr/lib/postgresql/*/bin), a built ringspan (RINGSPAN, or
target/debug/ringspan) and the Python package `websockets`.
"""

import glob
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from websockets.sync.client import connect

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The start of a node on a busy machine.
READY = 60


def binary():
    """The program under test."""
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return os.environ.get("RINGSPAN", str(pathlib.Path(target) / "debug" / "ringspan"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, condition, limit=READY):
    """Waits for a condition, and says which one did not come true."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            found = condition()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit(f"not within {limit} s: {what}")


def get(url, timeout=5):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def get_json(url):
    return json.loads(get(url))


class Postgres:
    """A server of its own, over a socket on loopback."""

    def __init__(self, directory):
        found = os.environ.get("PG_BIN") or next(iter(glob.glob("/usr/lib/postgresql/*/bin")), "")
        if not found:
            raise SystemExit("no Postgres: apt-get install postgresql, or set PG_BIN")
        self.data = directory / "pg"
        # It refuses to run as root.
        as_user = {"user": "postgres"} if os.geteuid() == 0 else {}
        if as_user:
            directory.chmod(0o755)
            self.data.mkdir()
            shutil.chown(self.data, "postgres")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        subprocess.run(
            [f"{found}/initdb", "-U", "ringspan", "-A", "trust", "--no-sync", "-D", self.data],
            check=True, **quiet, **as_user)
        self.port = free_port()
        self.process = subprocess.Popen(
            [f"{found}/postgres", "-D", self.data, "-p", str(self.port), "-h", "127.0.0.1",
             "-k", "", "-c", "fsync=off"], **quiet, **as_user)
        # It takes connections before it takes queries.
        ready = [f"{found}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        until("Postgres", lambda: subprocess.run(ready, check=False, **quiet).returncode == 0)
        self.url = f"postgres://ringspan@127.0.0.1:{self.port}/postgres"

    def stop(self):
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()


class Node:
    """One process of the ring."""

    def __init__(self, ring, name, **env):
        self.name, self.ring = name, ring
        self.log = ring.directory / f"{name}.log"
        arguments = [
            binary(), "serve", "--node-id", name, "--database-url", ring.database,
            "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0",
            "--admin-listen", "127.0.0.1:0", "--upstream", ring.upstream_url,
            "--heartbeat-interval", "1s", "--lease-ttl", "6s", "--drain-dwell", "2s",
            "--drain-timeout", "20s", "--drain-cleanup", "2s", "--migrate-on-start",
            *ring.arguments]
        environment = {**os.environ, **ring.env(name), **env}
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=open(self.log, "w"), text=True,
            env=environment)
        line = self.process.stdout.readline()
        found = re.search(r"clients (\S+), peers (\S+), admin (\S+)", line)
        if not found:
            raise SystemExit(f"{name} did not start:\n{self.log.read_text()}")
        self.clients, _, self.admin = found.groups()
        until(f"{name} to be ready", lambda: get_json(f"{self.admin}/health/ready")["joined"])

    def drain(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Ring:
    """Use as a context: everything ends with it; the directory stays if something failed."""

    def __init__(self, nodes=3, arguments=(), env=None, zones=()):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="ringspan-observe-"))
        # Of a node, by its name.
        self.arguments, self.env = list(arguments), env or (lambda name: {})
        self.postgres = Postgres(self.directory)
        self.database = self.postgres.url
        self.upstream = subprocess.Popen(
            [binary(), "sample-upstream", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True)
        self.upstream_url = re.search(r"(?:ws|http)://[0-9.:]+", self.upstream.stdout.readline())
        self.upstream_url = self.upstream_url.group(0).replace("http", "ws", 1)
        self.zones = list(zones)
        self.nodes = []
        try:
            for n in range(nodes):
                self.add(f"ringspan-{n}")
        except BaseException:
            self.__exit__(True)
            raise

    def add(self, name, **env):
        n = len(self.nodes)
        if self.zones:
            env["RINGSPAN_ZONE"] = self.zones[n % len(self.zones)]
        node = Node(self, name, **env)
        self.nodes.append(node)
        return node

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill()
        self.upstream.kill()
        self.postgres.stop()
        if failure:
            print(f"logs are kept in {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


class Client:
    """One conversation over a WebSocket; comes back by itself when its node leaves."""

    def __init__(self, nodes, session=None, traceparent=None):
        self.nodes, self.session = nodes, session or secrets.token_hex(8)
        self.traceparent = traceparent
        self.socket = None
        self.previous = None

    def attach(self, node):
        headers = {"session-id": self.session, "Authorization": "Bearer of-a-test"}
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        url = node.clients.replace("http", "ws", 1) + "/v1/responses"
        self.socket = connect(url, additional_headers=headers, open_timeout=20, max_size=None)

    def turn(self, text="hello [deltas=20] [delay=2ms]", limit=60):
        """One turn to its end; the type of its last event."""
        create = {"type": "response.create", "model": "sample", "store": False, "stream": True,
                  "input": [{"type": "message", "role": "user",
                             "content": [{"type": "input_text", "text": text}]}]}
        if self.previous:
            create["previous_response_id"] = self.previous
        self.socket.send(json.dumps(create))
        while True:
            event = json.loads(self.socket.recv(timeout=limit))
            if event["type"] == "response.completed":
                self.previous = event["response"]["id"]
            if event["type"] in ("response.completed", "response.failed", "error"):
                return event["type"]

    def close(self):
        if self.socket:
            self.socket.close()


class Load:
    """Conversations that go on until they are told to stop, whatever happens to nodes."""

    def __init__(self, ring, clients, text="hello [deltas=20] [delay=5ms]", pause=0.05):
        self.stopping = threading.Event()
        self.ended, self.failed = 0, 0
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self.run, args=(ring, n, text, pause), daemon=True)
            for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, ring, n, text, pause):
        client = Client(ring.nodes, f"session-{n}")
        at = n
        while not self.stopping.is_set():
            live = [node for node in ring.nodes if node.process.poll() is None]
            try:
                if client.socket is None:
                    at += 1
                    client.attach(live[at % len(live)])
                kind = client.turn(text)
                with self.lock:
                    self.ended += 1
                    self.failed += kind != "response.completed"
            except Exception:
                # Its node leaves, or is gone: to another one, as a balancer would send it.
                client.socket = None
            self.stopping.wait(pause)
        client.close()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)
