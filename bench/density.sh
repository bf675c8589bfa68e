#!/usr/bin/env bash
# bench/density.sh [N]: deploys N functions to a fresh node, calls each once and tells what an idle instance costs: its
# cgroup (kernel memory and page cache included), the proportional and private memory of its processes, and the node's
# own. FUNCTION=echo-node chooses another function; RATE the first calls a second.
set -euo pipefail
cd "$(dirname "$0")/.."
n=${1:-1000}
ulimit -n "$(ulimit -Hn)"
log=$(mktemp "${TMPDIR:-/tmp}/starling-density.XXXXXX")
settings=$(mktemp "${TMPDIR:-/tmp}/starling-density.XXXXXX")
trap 'rm -f "$log" "$settings"' EXIT
echo "worth: 1000h" >"$settings" # or functions called once are released after two minutes, before the last are called
# Every instance claims its limit, not what it uses: 128 MiB each. A host keeps a part free of idle instances.
most=$((n + n / 32 + 40))
accounts=$(((n + 999) / 1000)) # of 1,000 functions at most
export ACCOUNTS=
[ "$accounts" = 1 ] || ACCOUNTS=$accounts
NODE_FLAGS="--memory $((most * 128)) --instances $most --allow-shared-kernel --scale-config $settings" POOL=8 \
	bench/run.sh cold -n "$((n / accounts))" --rate "${RATE:-10}" --hold 30s --no-floor 2>"$log" &
run=$!
until grep -q '^holding' "$log"; do
	kill -0 $run 2>/dev/null || { cat "$log" >&2; exit 1; }
	sleep 0.5
done
sleep 2 # so that the last ones are frozen too
/usr/bin/python3 - "$run" <<'EOF'
import glob, os, sys

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
        if name in ("Rss", "Pss", "Private_Dirty", "Private_Clean"):
            out[name] = int(rest.split()[0])
    return out

def command(pid):
    return open(f"/proc/{pid}/cmdline").read().split("\0")

family = children(int(sys.argv[1]))
node = next(p for p in family if command(p)[1:2] == ["node"])
warden = next(p for p in family if command(p)[1:2] == ["warden"])
inside = children(warden)
root = "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else "/sys/fs/cgroup"

def charged(pid):
    """Returns what the cgroup of a process is charged, in KiB."""
    for line in open(f"/proc/{pid}/cgroup"):
        if ":memory:" in line or line.startswith("0::/starling"):
            for name in ("memory.usage_in_bytes", "memory.current"):
                file = f"{root}{line.strip().split(':')[2]}/{name}"
                if os.path.exists(file):
                    return int(open(file).read()) >> 10
    return 0

programs = {}
for pid in inside:
    try:
        found = {**memory(pid), "cgroup": charged(pid), "n": 1}
        sums = programs.setdefault(os.path.basename(command(pid)[0]), {})
        for name, kib in found.items():
            sums[name] = sums.get(name, 0) + kib
    except (FileNotFoundError, ProcessLookupError):
        pass # it ended meanwhile
for program, sums in sorted(programs.items()):
    n = sums["n"]
    print(f"{n} x {program} (warm ones of the pool included), each: cgroup {sums['cgroup'] // n} KiB, PSS {sums['Pss'] // n} KiB, "
          f"private {(sums['Private_Dirty'] + sums['Private_Clean']) // n} KiB, RSS {sums['Rss'] // n} KiB")
free = {l.split(":")[0]: int(l.split()[1]) >> 10 for l in open("/proc/meminfo")}
print(f"machine: {free['MemTotal'] - free['MemAvailable']} MiB of {free['MemTotal']} not available, kernel objects {free['SUnreclaim']} MiB, page tables {free['PageTables']} MiB, stacks {free['KernelStack']} MiB")
for name, pid in (("node", node), ("warden", warden)):
    m = memory(pid)
    print(f"{name}: RSS {m['Rss'] >> 10} MiB, private {(m['Private_Dirty'] + m['Private_Clean']) >> 10} MiB, {len(os.listdir(f'/proc/{pid}/fd'))} descriptors")
EOF
wait $run
