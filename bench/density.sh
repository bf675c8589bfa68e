#!/usr/bin/env bash
# bench/density.sh [N]: deploys N functions to a fresh node, calls each once and tells what an idle instance costs: its
# cgroup (kernel memory and page cache included), the proportional and private memory of its processes, the CPU until it was
# idle, and the node's own. FUNCTION=echo-node chooses another function; ISOLATION=gvisor or kata what isolates it; RATE the
# first calls a second; POOL the warm sandboxes; HOLD how long all are held.
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
NODE_FLAGS="--memory $((most * 128)) --instances $most --allow-shared-kernel --scale-config $settings" POOL=${POOL:-8} \
	bench/run.sh cold -n "$((n / accounts))" --rate "${RATE:-10}" --hold "${HOLD:-30s}" --no-floor 2>"$log" &
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
# What makes the sandboxes: starling-guest as a warden of one kind or another, or starling-vmd.
keeper = next(p for p in children(node) if command(p)[1:2] in (["warden"], ["gvisor-warden"]) or os.path.basename(command(p)[0]) == "starling-vmd")

def group(pid, controller):
    """Returns the folder of a process's group of a controller."""
    root = "/sys/fs/cgroup"
    for line in open(f"/proc/{pid}/cgroup"):
        _, controllers, path = line.strip().split(":", 2)
        if controllers == "" and not os.path.isdir(f"{root}/memory"):
            return root + path
        if controller in controllers.split(","):
            return f"{root}/{controller}{path}"

def charged(pid):
    """Returns what the group of a process is charged, in KiB, and the CPU it used, in ms."""
    for file in ("memory.usage_in_bytes", "memory.current"):
        path = f"{group(pid, 'memory')}/{file}"
        if os.path.exists(path):
            kib = int(open(path).read()) >> 10
    folder = group(pid, "cpuacct") or group(pid, "cpu")
    if os.path.exists(f"{folder}/cpuacct.usage"):
        return kib, int(open(f"{folder}/cpuacct.usage").read()) / 1e6
    return kib, int(open(f"{folder}/cpu.stat").read().split()[1]) / 1e3

def used(pid):
    """Returns the CPU of a process and of its children that ended, in ms."""
    words = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return sum(int(w) for w in words[11:15]) * 1000 / os.sysconf("SC_CLK_TCK")

sandboxes = {}  # by group: the processes and what they hold together
for pid in children(keeper):
    try:
        box = sandboxes.setdefault(group(pid, "memory"), {"programs": set()})
        box["cgroup"], box["CPU"] = charged(pid)
        box["programs"].add(os.path.basename(command(pid)[0]) or "waiting for code")
        for name, kib in memory(pid).items():
            box[name] = box.get(name, 0) + kib
    except (FileNotFoundError, ProcessLookupError):
        pass # it ended meanwhile
kinds = {}
for box in sandboxes.values():
    if "Pss" in box:
        kinds.setdefault("+".join(sorted(box["programs"])), []).append(box)
for programs, boxes in sorted(kinds.items()):
    def middle(*names):
        return sorted(sum(box[name] for name in names) for box in boxes)[len(boxes) // 2]
    print(f"{len(boxes)} x {programs} (warm ones of the pool included), the middle one: cgroup {middle('cgroup')} KiB, PSS {middle('Pss')} KiB, "
          f"private {middle('Private_Dirty', 'Private_Clean')} KiB, RSS {middle('Rss')} KiB; CPU {middle('CPU'):.0f} ms")
free = {l.split(":")[0]: int(l.split()[1]) >> 10 for l in open("/proc/meminfo")}
print(f"machine: {free['MemTotal'] - free['MemAvailable']} MiB of {free['MemTotal']} not available, kernel objects {free['SUnreclaim']} MiB, page tables {free['PageTables']} MiB, stacks {free['KernelStack']} MiB")
for name, pid in (("node", node), (os.path.basename(command(keeper)[0]), keeper)):
    m = memory(pid)
    print(f"{name}: CPU {used(pid):.0f} ms, RSS {m['Rss'] >> 10} MiB, private {(m['Private_Dirty'] + m['Private_Clean']) >> 10} MiB, {len(os.listdir(f'/proc/{pid}/fd'))} descriptors")
EOF
wait $run
