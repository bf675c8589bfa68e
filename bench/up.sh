#!/usr/bin/env bash
# bench/up.sh [N]: starts "starling up --pool 2" N times on fresh folders and tells how long it took until it was ready and its pools were full, and what
# the node, the warden and the warm sandboxes hold of the memory five seconds later, in MiB.
set -euo pipefail
cd "$(dirname "$0")/.."
exec /usr/bin/python3 - "${1:-3}" <<'EOF'
import glob, os, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request

def children(pid):
    found = []
    for task in glob.glob(f"/proc/{pid}/task/*/children"):
        for child in open(task).read().split():
            found += [int(child)] + children(int(child))
    return found

def memory(pid):
    out = {}
    for line in open(f"/proc/{pid}/smaps_rollup"):
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            out[name] = int(rest.split()[0]) / 1024
    return out

def kind(pid):
    argv = open(f"/proc/{pid}/cmdline").read().split("\0")
    name = os.path.basename(argv[0])
    return argv[1] if name == "starling" else "warden" if argv[1:2] == ["warden"] else "python3" if "python" in name else "node.js" if name == "node" else "provided"

def ports(n):
    s = [socket.socket() for _ in range(n)]
    for x in s:
        x.bind(("127.0.0.1", 0))
    found = ["127.0.0.1:%d" % x.getsockname()[1] for x in s]
    for x in s:
        x.close()
    return found

def wait(what):
    for _ in range(6000):
        try:
            if what():
                return
        except OSError:
            pass
        time.sleep(0.005)
    raise SystemExit("it is not ready after 30 s")

for _ in range(int(sys.argv[1])):
    work = tempfile.mkdtemp(prefix="starling-up.")
    quic, http, admin = ports(3)
    read = lambda path: urllib.request.urlopen(f"http://{admin}/{path}", timeout=2).read().decode()
    full = lambda: sum(l.startswith("starling_pool_ready{") and float(l.split()[-1]) >= 2 for l in read("metrics").split("\n")) == 3
    began = time.time()
    up = subprocess.Popen(["bin/starling", "up", "--data", work + "/data", "--listen", quic, "--http", http, "--admin", admin, "--pool", "2"],
                          env=dict(os.environ, XDG_CONFIG_HOME=work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: read("readyz") is not None)
        ready = time.time() - began
        wait(full)
        filled = time.time() - began
        time.sleep(5)
        sums = {}
        for pid in [up.pid] + children(up.pid):
            try:
                m, k = memory(pid), kind(pid)
            except (OSError, KeyError):
                continue
            n, rss, pss = sums.get(k, (0, 0, 0))
            sums[k] = (n + 1, rss + m["Rss"], pss + m["Pss"])
        print(f"ready {ready:.2f} s, pools full {filled:.2f} s; RSS {sum(v[1] for v in sums.values()):.0f}, PSS {sum(v[2] for v in sums.values()):.0f}: " +
              ", ".join(f"{v[0]} {k} {v[1]:.1f}/{v[2]:.1f}" for k, v in sums.items()), flush=True)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait()
        shutil.rmtree(work, ignore_errors=True)
EOF
