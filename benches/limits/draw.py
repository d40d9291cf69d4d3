#!/usr/bin/env python3
"""Drives several gateways with one limit in a shared Redis, and draws what was admitted against what was offered.

    cargo build --release --bin gatewright
    benches/limits/draw.py --binary target/release/gatewright --lease 2% --out docs/limits-admitted.svg

Offered are steps, bursts and silence. Drawn are, for each half second: what was offered, what was admitted, and the rate of the
limit. Below it, the level of a bucket that the admitted requests fill at the times at which they were answered: the limit is
kept where it stays under its capacity. That bucket is computed here, in Python, and has nothing in common with the gateway's.
Standard library only, beside redis-server and curl.
"""

import argparse
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

RATE, BURST = 200, 300
# Seconds, and requests a second that are offered to all gateways together.
PHASES = [(4, 100), (6, 500), (2, 0), (1, 1000), (5, 150), (2, 0), (6, 400), (4, 120)]
BIN = 0.5


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def config(directory, number, redis, port, lease):
    lease = f", lease = '{lease}'" if lease else ""
    path = os.path.join(directory, f"{number}.toml")
    with open(path, "w") as f:
        f.write(f"""
[admin]
listen = "unix:{directory}/{number}.sock"
[log]
level = "warn"
access = {{ output = "off" }}
[redis]
url = "redis://127.0.0.1:{redis}"
timeout = "200ms"
[listeners.http]
address = "127.0.0.1:{port}"
[routes.a]
match = {{ path = "/a" }}
filters = [
  {{ rate_limit = {{ by = "route", limits = [{{ rate = "{RATE}/1s", burst = {BURST} }}], store = "redis"{lease} }} }},
  {{ respond = {{ body = "hello" }} }},
]
""")
    return path


class Load:
    """Threads that share a schedule: each takes the next time, waits for it, and asks one of the gateways in turn."""

    def __init__(self, ports, schedule):
        self.ports, self.schedule = ports, schedule
        self.next, self.lock, self.seen, self.begun = 0, threading.Lock(), [], 0.0

    def run(self, threads=32):
        self.begun = time.monotonic()
        workers = [threading.Thread(target=self.work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def work(self):
        clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=5) for port in self.ports]
        mine = []
        while True:
            with self.lock:
                number = self.next
                self.next += 1
            if number >= len(self.schedule):
                break
            wait = self.begun + self.schedule[number] - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            client = clients[number % len(clients)]
            client.request("GET", "/a")
            response = client.getresponse()
            response.read()
            if response.status not in (200, 429):
                print(f"the gateway answered {response.status}", file=sys.stderr)
                os._exit(1)
            mine.append((time.monotonic() - self.begun, response.status == 200))
        with self.lock:
            self.seen.extend(mine)


def schedule():
    times, start = [], 0.0
    for seconds, rate in PHASES:
        times += [start + n / rate for n in range(int(seconds * rate))]
        start += seconds
    return times, start


def levels(admitted):
    level, last, points = 0.0, 0.0, []
    for at in admitted:
        level = max(0.0, level - (at - last) * RATE) + 1
        last = at
        points.append((at, level))
    return points


def draw(offered, admitted, length, gateways, lease):
    width, plot, left, top = 860, 200, 60, 48

    def x(t):
        return left + t / length * (width - left - 20)

    def histogram(times):
        counts = [0] * (int(length / BIN) + 2)
        for at in times:
            counts[int(at / BIN)] += 1
        return [count / BIN for count in counts]

    high = max(histogram(offered) + [1])

    def y(v):
        return top + plot - v / high * plot

    def steps(values):
        points = []
        for n, value in enumerate(values):
            points += [(x(min(n * BIN, length)), y(value)), (x(min((n + 1) * BIN, length)), y(value))]
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)

    points = levels(admitted)
    low = top + plot + 60

    def yl(v):
        return low + 120 - v / (BURST * 1.15) * 120

    bucket = " ".join(f"{x(a):.1f},{yl(b):.1f}" for a, b in points[:: max(1, len(points) // 800)])
    most = max((level for _, level in points), default=0)
    marks = range(0, int(length) + 1, 5)
    axis = "".join(f'<text x="{x(t):.0f}" y="{low + 138}" text-anchor="middle">{t} s</text>' for t in marks)
    how = f"leases of {lease}" if lease else "each request asks Redis"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {low + 150}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{left}" y="20" font-size="14">{gateways} gateways, one limit of {RATE}/1s with a burst of {BURST}: {how}</text>
<text x="{left}" y="38" fill="#888">offered {len(offered)}</text>
<text x="{left + 110}" y="38" fill="#1a6">admitted {len(admitted)}</text>
<text x="{left + 230}" y="38" fill="#c33">the rate</text>
<text x="8" y="{top + 12}">{high:.0f}/s</text><text x="8" y="{top + plot}">0</text>
<polyline points="{steps(histogram(offered))}" fill="none" stroke="#999"/>
<polyline points="{steps(histogram(admitted))}" fill="none" stroke="#1a6" stroke-width="2"/>
<line x1="{left}" x2="{width - 20}" y1="{y(RATE):.1f}" y2="{y(RATE):.1f}" stroke="#c33" stroke-dasharray="4 3"/>
<text x="{left}" y="{low - 8}">level of the bucket that the admitted requests fill: at most {most:.0f} of {BURST}</text>
<line x1="{left}" x2="{width - 20}" y1="{yl(BURST):.1f}" y2="{yl(BURST):.1f}" stroke="#c33" stroke-dasharray="4 3"/>
<text x="8" y="{yl(BURST) + 4:.1f}">{BURST}</text>
<polyline points="{bucket}" fill="none" stroke="#1a6"/>
{axis}
</svg>
"""


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binary", default="target/release/gatewright")
    options.add_argument("--gateways", type=int, default=4)
    options.add_argument("--lease", default="", help="such as 2%%; without it each request asks Redis")
    options.add_argument("--out", default="docs/limits-admitted.svg")
    args = options.parse_args()
    directory, started = tempfile.mkdtemp(), []
    try:
        redis = free_port()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        started.append(subprocess.Popen(server, **quiet))
        ports = [free_port() for _ in range(args.gateways)]
        for number, port in enumerate(ports):
            path = config(directory, number, redis, port, args.lease)
            started.append(subprocess.Popen([args.binary, "run", "-c", path], **quiet))
        end = time.monotonic() + 30
        for number in range(args.gateways):
            ask = ["curl", "-s", "--unix-socket", f"{directory}/{number}.sock", "http://localhost/metrics"]
            while "\ngatewright_redis_up 1" not in subprocess.run(ask, capture_output=True, text=True).stdout:
                if time.monotonic() > end:
                    sys.exit("a gateway is not ready")
                time.sleep(0.05)
        # So that each knows of the others, as leases near the end of a limit depend on it.
        time.sleep(3)
        times, length = schedule()
        load = Load(ports, times)
        load.run()
        seen = sorted(load.seen)
        length = max(length, seen[-1][0])
        admitted = [at for at, ok in seen if ok]
        with open(args.out, "w") as f:
            f.write(draw([at for at, _ in seen], admitted, length, args.gateways, args.lease))
        most = max(level for _, level in levels(admitted))
        print(json.dumps({"offered": len(seen), "admitted": len(admitted), "highest level": round(most, 1), "capacity": BURST}))
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
