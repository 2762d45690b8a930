"""The status page in a real browser: Chromium, driven over its own protocol, against a real ring.

Brings the ring into each state that an operator may meet, asserts what the page shows of it, and takes
pictures (--out, by default docs/images). Needs Chromium (CHROMIUM, or `chromium` in PATH).

    python tests/observe/page.py [--out DIRECTORY]
"""

import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from ring import ROOT, Load, Ring, get_json, until
from websockets.sync.client import connect


class Browser:
    """One page of a headless Chromium."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="chromium-")
        self.process = subprocess.Popen(
            [os.environ.get("CHROMIUM", "chromium"), "--headless=new", "--no-sandbox", "--disable-gpu",
             "--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={self.directory}",
             "--force-color-profile=srgb", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"DevTools listening on ws://([^/]+)/", line)
            if found:
                break
        # What it goes on to say must not fill the pipe.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        pages = get_json(f"http://{found.group(1)}/json")
        url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = connect(url, max_size=None)  # Closed with the browser.
        self.next, self.faults = 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.next += 1
        self.socket.send(json.dumps({"id": self.next, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(message["params"]["exceptionDetails"])
            if message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                # A node that has left answers nothing: the page's business, and looked at there.
                if entry["level"] == "error" and entry["source"] != "network":
                    self.faults.append(entry)
            if message.get("id") == self.next:
                if "error" in message:
                    raise SystemExit(f"{method}: {message['error']}")
                return message["result"]

    def look(self, width, height, dark=False, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=mobile)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("live", "document.getElementById('link')?.dataset.state === 'live'")

    def ask(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, what, expression, limit=40):
        return until(f"the page to show {what}", lambda: self.ask(expression), limit)

    def picture(self, path):
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(found["data"]))
        shrink(path)
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def shrink(path):
    """To a palette, where Pillow is installed: a third of the size, and nobody sees it."""
    try:
        from PIL import Image
    except ImportError:
        return
    Image.open(path).convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) \
        .save(path, optimize=True)


def count(selector):
    return f"document.querySelectorAll({json.dumps(selector)}).length"


def text(selector):
    return f"document.querySelector({json.dumps(selector)}).textContent"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "images")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    browser = Browser()
    try:
        with Ring(1, zones=["eu-1a", "eu-1b", "eu-1c"]) as ring:
            states(browser, ring, out)
    finally:
        browser.stop()
    assert not browser.faults, browser.faults


def states(browser, ring, out):
    # One node, empty.
    browser.look(1180, 900)
    browser.open(ring.nodes[0].admin)
    browser.wait("one node", count("#ring .node") + " === 1")
    assert browser.ask(count("#ring .arc")) == 1
    assert "No session yet" in browser.ask(text("#session-rows"))
    assert browser.ask(text("#ready")) == "ready"
    assert browser.ask("document.getElementById('drains').hidden")
    browser.picture(out / "page-empty.png")

    # Three nodes with sessions and turns.
    ring.add("ringspan-1")
    ring.add("ringspan-2")
    browser.wait("three nodes", count("#ring .node.ACTIVE") + " === 3")
    zones = browser.ask("[...document.querySelectorAll('#ring .fact')].map((e) => e.textContent).join()")
    assert "eu-1b" in zones, zones
    load = Load(ring, 36, "hello [deltas=30] [delay=30ms]", pause=1.0)
    browser.wait("36 sessions", count("#session-rows tr") + " >= 36")
    browser.wait("sessions on the ring", count("#ring .mark") + " >= 36")
    browser.wait("running turns", count("#ring .mark.busy") + " > 0")
    browser.wait("forwarded clients", count("#ring .chord") + " > 0")
    browser.wait("the rate of turns", "parseFloat(document.getElementById('rate').textContent) > 0")
    time.sleep(8)  # For the pictures: lines of a few points, marks that have arrived.
    browser.picture(out / "page-ring.png")
    browser.look(1180, 900, dark=True)
    browser.picture(out / "page-dark.png")
    browser.look(1180, 900)

    # Finding one, and its story.
    browser.ask("{ const f = document.getElementById('filter'); f.value = 'session-17';"
                " f.dispatchEvent(new Event('input')); }")
    browser.wait("one match", count("#session-rows tr") + " === 1")
    browser.ask("document.querySelector('#session-rows button').click()")
    browser.wait("a story", count("#story-events li.kind-turn") + " > 0")
    assert browser.ask("document.getElementById('story').open")
    kinds = browser.ask("[...document.querySelectorAll('#story-events b')].map((e) => e.textContent)")
    assert {"claimed", "attached", "turn"} <= set(kinds), kinds
    assert browser.ask(text("#story-title")) == "Session session-17"

    # A drain that one can watch, from another node's page and with the story still open.
    owner = next(node for node in ring.nodes if node.name == browser.ask(
        "document.querySelectorAll('#story-way .stop b')[2].textContent"))
    page = next(node for node in ring.nodes if node is not owner)
    browser.open(page.admin)
    browser.wait("sessions", count("#session-rows tr") + " >= 36")
    owner.drain()
    browser.wait("the drain", f"{count('#drains .drain')} === 1")
    assert owner.name in browser.ask(text("#drains h2"))
    browser.wait("sessions that moved", "/[1-9]\\d* of \\d+ sessions moved/.test("
                 "document.getElementById('drains').textContent)")
    browser.picture(out / "page-drain.png")
    owner.process.wait(60)
    browser.wait("two active nodes", count("#ring .node.ACTIVE") + " === 2")
    browser.wait("the end of the drain", "document.getElementById('drains').hidden")
    find = ("[...document.querySelectorAll('#session-rows tr')].find((row) => "
            "row.children[1].textContent === 'session-17').querySelector('button').click()")
    browser.ask(find)
    browser.wait("its move in the story", count("#story-events li.kind-arrived") + " > 0")
    browser.wait("turns at the heir", count("#story-events li.kind-turn") + " > 0")
    time.sleep(3)
    browser.picture(out / "page-story.png")
    browser.ask("document.getElementById('story').close()")

    # A phone.
    browser.look(390, 844, mobile=True)
    time.sleep(1)
    wide = browser.ask("document.documentElement.scrollWidth")
    assert wide <= 390, f"the page is {wide} px wide on a phone of 390"
    browser.picture(out / "page-phone.png")
    browser.look(1180, 900)

    # A node that dies while it owns sessions: it stands still, so that nothing proves its death.
    assert load.failed == 0, f"{load.failed} turns did not complete"
    dying = next(node for node in ring.nodes if node not in (page, owner))
    ring.add("ringspan-3")
    browser.wait("the new node", count("#ring .node.ACTIVE") + " === 3")
    dying.process.send_signal(signal.SIGSTOP)
    browser.wait("a dead node", count("#member-rows tr.DEAD") + " === 1", 60)
    assert browser.ask(count("#ring .node.DEAD")) == 1
    browser.picture(out / "page-dead.png")
    dying.kill()
    browser.wait("that its sessions are others'", count("#member-rows tr.DEAD") + " === 0", 60)
    load.stop()

    # The node of the page itself leaves.
    page.drain()
    browser.wait("its own drain", text("#ready") + " === 'draining'")
    browser.wait("its steps", count("#drains .steps li") + " > 0")
    page.process.wait(60)
    browser.wait("that the node is away", "['reconnecting', 'node is away'].includes(document.getElementById('link').textContent)")


if __name__ == "__main__":
    main()
