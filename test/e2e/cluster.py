"""A local cluster for the end-to-end scripts: starts `chronik dev`, kills and
restarts its nodes by dev.json, reads the admin API. Bounded: every wait has a limit."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARY = os.environ.get("CHRONIK", os.path.join(ROOT, "bin", "chronik"))


def free_base():
    """A base port whose node ports (+0..2, +100..102, +200..202) are all free."""
    for _ in range(50):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            base = s.getsockname()[1]
        if base > 65000:
            base -= 1000
        try:
            for off in (0, 1, 2, 100, 101, 102, 200, 201, 202):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", base + off))
            return base
        except OSError:
            continue
    raise RuntimeError("no free ports")


def eventually(limit, what, check):
    """Calls check until it returns something true; fails after limit seconds."""
    began = time.monotonic()
    last = None
    while time.monotonic() - began < limit:
        try:
            got = check()
            if got:
                return got
        except (OSError, urllib.error.URLError, LookupError) as e:
            last = e
        time.sleep(0.03)
    raise AssertionError(f"{what}: not within {limit}s ({last})")


class Cluster:
    def __init__(self, *extra):
        self.dir = tempfile.mkdtemp(prefix="chronik-e2e-")
        base = free_base()
        self.out = open(os.path.join(self.dir, "dev.out"), "wb")
        self.proc = subprocess.Popen(
            [BINARY, "dev", "--data-dir", self.dir, "--base-port", str(base), *extra],
            stdout=self.out, stderr=self.out)
        eventually(60, "cluster is ready", lambda: "ready after" in self._dev_out())

    def _dev_out(self):
        with open(self.out.name) as f:
            text = f.read()
        if "chronik: error" in text:
            raise AssertionError(text)
        return text

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.proc.send_signal(signal.SIGINT)
        try:
            self.proc.wait(20)
        except subprocess.TimeoutExpired:
            self.proc.kill()
        self.out.close()
        logs = self.logs()
        if kind is not None:
            sys.stderr.write(logs[-20000:])
        for bad in ("panic:", "fatal error:", "invariant broken"):
            assert bad not in logs, f"a node's log shows {bad!r}\n{logs[-20000:]}"
        shutil.rmtree(self.dir, ignore_errors=True)

    def logs(self):
        text = ""
        for i in (1, 2, 3):
            with open(os.path.join(self.dir, f"node-{i}.log"), errors="replace") as f:
                text += f"--- node {i}\n" + f.read()
        return text

    def nodes(self):
        with open(os.path.join(self.dir, "dev.json")) as f:
            return {n["id"]: n for n in json.load(f)["nodes"]}

    def bootstrap(self):
        return [n["kafka"] for n in self.nodes().values()]

    def dev(self, *args):
        subprocess.run([BINARY, "dev", *args, "--data-dir", self.dir], check=True, stdout=subprocess.DEVNULL, timeout=30)

    def kill(self, node):
        self.dev("kill", str(node))

    def restart(self, node):
        self.dev("restart", str(node))

    def wipe(self, node):
        self.dev("wipe", str(node))

    def terminate(self, node):
        """Stops a node in order (SIGTERM) and waits until it is gone."""
        n = self.nodes()[node]
        os.kill(n["pid"], signal.SIGTERM)
        eventually(15, f"node {node} stops", lambda: not self._runs(n))

    @staticmethod
    def _runs(n):
        try:
            with open(f"/proc/{n['pid']}/cmdline") as f:
                return n["dir"] in f.read()
        except FileNotFoundError:
            return False

    def get(self, node, path):
        with urllib.request.urlopen(f"http://{self.nodes()[node]['admin']}{path}", timeout=5) as r:
            return json.load(r)

    def ready(self, node):
        def check():
            with urllib.request.urlopen(f"http://{self.nodes()[node]['admin']}/readyz", timeout=2) as r:
                return r.status == 200
        return eventually(20, f"node {node} is ready", check)

    def replica(self, node, group):
        for r in self.get(node, "/v1/replicas")["replicas"]:
            if r["group"] == group:
                return r
        raise LookupError(f"node {node} has no {group}")

    def leader(self, group):
        """The node that leads group, once one says so."""
        def check():
            for i in self.nodes():
                try:
                    if self.replica(i, group)["role"] == "leader":
                        return i
                except (OSError, urllib.error.URLError, LookupError):
                    continue
            return None
        return eventually(10, f"{group} has a leader", check)

    def wait_equal(self, topic, partition, upto, limit):
        """Waits until all three digests are equal and reach offset upto."""
        def check():
            ds = [self.get(i, f"/v1/digest?topic={topic}&partition={partition}") for i in self.nodes()]
            return all(d["to"] == upto and d["sha256"] == ds[0]["sha256"] for d in ds)
        began = time.monotonic()
        eventually(limit, f"digests of {topic}-{partition} are equal at {upto}", check)
        return time.monotonic() - began
