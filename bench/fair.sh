#!/usr/bin/env bash
# bench/fair.sh [SECONDS]: does a tenant at 50 times the load of others move them? Three nodes on this machine, four quiet
# tenants at QUIET (20) calls a second each: alone for ALONE (SECONDS), beside a loud one at 50 times that for SECONDS (10), and
# alone again. A machine drifts; so what they are compared with is both parts alone together, in the same cluster.
# The quiet ones are measured from a second before the loud one's first call on: the beginning counts.
# Prints latency and refusals of the quiet ones before and during, of each and of all together (the class), what the loud one
# got, and Jain's index of what the quiet ones were served; the same as JSON in bench/results. Latency counts from when a call was due; "sent" is from when its
# generator really sent it. Beside each p99 stand the smallest and largest of the six parts of its phase, and who used the machine: how far parts of one phase lie apart is
# what a ratio cannot tell. Clients of a real cluster are on machines of their own; here
# all share its processors. So the quiet generators run at nice -10, as nodes do, and the loud one at 10: what it takes
# for itself is not what is measured (root only; otherwise all are equal). MEMORY is each host's room in MiB (4096).
set -euo pipefail
cd "$(dirname "$0")/.."
unset STARLING_SERVER STARLING_KEY STARLING_ACCOUNT STARLING_PROFILE STARLING_ADMIN
seconds=${1:-10} alone=${ALONE:-${1:-10}} quiet=${QUIET:-20} memory=${MEMORY:-4096}
bin=$PWD/bin/starling
out=bench/results/$(date -u +%Y%m%d-%H%M%S)-fair.json
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
work=$(mktemp -d "${TMPDIR:-/tmp}/starling-bench.XXXXXX")
export XDG_CONFIG_HOME=$work/config
pids=()
finish() {
	local code=$?
	for p in "${pids[@]}"; do kill -TERM "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
	[ $code -eq 0 ] || tail -n 15 "$work"/*.log >&2
	rm -rf "$work"
	exit $code
}
trap finish EXIT
read -r -a addr < <(/usr/bin/python3 -c '
import socket
s = [socket.socket() for _ in range(9)]
[x.bind(("127.0.0.1", 0)) for x in s]
print(*("127.0.0.1:%d" % x.getsockname()[1] for x in s))')
field() { /usr/bin/python3 -c 'import json,sys; d={k.lower(): v for k, v in json.load(sys.stdin).items()}; print(d[sys.argv[1].lower()])' "$1"; }
made=$("$bin" cluster init --data "$work/n0" --listen "${addr[0]}" --name n0 -o json)
export STARLING_SERVER=http://${addr[1]}
admin=$(field adminKey <<<"$made")
for i in 0 1 2; do
	join=()
	[ $i -eq 0 ] || join=(--roles frontend,scheduler,host --join "${addr[0]}" --token "$(STARLING_KEY=$admin "$bin" cluster token)")
	"$bin" node --data "$work/n$i" --name "n$i" --listen "${addr[3 * i]}" --http "${addr[3 * i + 1]}" --admin "${addr[3 * i + 2]}" \
		--memory "$memory" --allow-shared-kernel "${join[@]}" >"$work/n$i.log" 2>&1 &
	pids+=($!)
	for _ in $(seq 300); do
		curl -fs "http://${addr[3 * i + 2]}/readyz" >/dev/null && break
		kill -0 "${pids[i]}"
		sleep 0.1
	done
done
declare -A key
for t in q0 q1 q2 q3 loud; do
	key[$t]=$(STARLING_KEY=$admin "$bin" account create "$t" -o json | /usr/bin/python3 -c "import json,sys; print(json.load(sys.stdin)['key']['secret'])")
	STARLING_KEY=${key[$t]} "$bin" deploy bin/functions/echo-python.zip --name "$t" >/dev/null
done
load() { # load PHASE TENANT RATE MOST NODE
	local nice=-10
	[ "$2" = loud ] && nice=10
	STARLING_SERVER=http://${addr[3 * $5 + 1]} STARLING_KEY=${key[$2]} nice -n "$nice" "$bin" bench warm --no-floor --function "$2" --rate "$3" -c "$4" \
		--warmup "${warm}s" -d "${length}s" --timeout 10s --commit "$commit" --out "$work/$1-$2" >/dev/null
}
phase() { # phase NAME [LOUD]
	local running=() n=0 warm=2 length=$((seconds + 1))
	[ "$1" = during ] || length=$alone
	[ "$1" != after ] || sleep 2 # what the loud one left is worked off
	for t in q0 q1 q2 q3; do
		load "$1" $t "$quiet" 64 $((n++ % 3)) &
		running+=($!)
	done
	usage "$1-from"
	if [ -n "${2:-}" ]; then
		sleep 3
		warm=0 length=$seconds
		load "$1" loud $((50 * quiet)) 256 0 &
		running+=($!)
	fi
	for p in "${running[@]}"; do wait "$p"; done
	usage "$1-to"
}
usage() { # usage NAME: what the machine and each node used so far
	head -n 1 /proc/stat >"$work/$1.stat"
	for i in 0 1 2; do curl -fs "http://${addr[3 * i + 2]}/metrics" >"$work/$1.metrics-$i"; done
}
phase before
phase during loud
phase after
mkdir -p bench/results
/usr/bin/python3 - "$work" "$out" "$seconds" "$alone" "$quiet" "$commit" <<'PY'
import glob, json, os, re, sys
work, out, seconds, alone, quiet, commit = sys.argv[1:]
length = dict(before=int(alone) + 2, during=int(seconds) + 3, after=int(alone) + 2)  # with the warm-up and the second before the loud one
quiet_ones = ["q0", "q1", "q2", "q3"]
alone_phases = ["before", "after"]
curves = {}
def together(kind, phases, tenants):
    """p99 in microseconds of all calls of tenants in phases, from their curves: parts between two points are straight."""
    def part(curve, x):
        below = (0.0, 0)
        for p, v in curve:
            if v >= x:
                return p if v == below[1] else below[0] + (p - below[0]) * (x - below[1]) / (v - below[1])
            below = p, v
        return 100.0
    all_of = [curves[kind, p, t] for p in phases for t in tenants]
    low, high = 0, max(c[-1][1] for _, c in all_of)
    while high - low > 1:
        mid = (low + high) // 2
        served = sum(n * part(c, mid) for n, c in all_of) / sum(n for n, _ in all_of)
        low, high = (low, mid) if served >= 99 else (mid, high)
    return high
def result(phase, tenant):
    report = json.load(open(f"{work}/{phase}-{tenant}.json"))
    r = report["results"][-1]
    errors = r.get("errors") or {}
    refused = sum(n for k, n in errors.items() if "429" in k or "overloaded" in k)
    l = r["latencyMicros"]
    curves["due", phase, tenant] = l["count"], [(p["percentile"], p["micros"]) for p in r["curve"]]
    m = r["sentLatencyMicros"]
    curves["sent", phase, tenant] = m["count"], [(50, m["p50"]), (90, m["p90"]), (99, m["p99"]), (99.9, m["p999"]), (100, m["max"])]
    parts = [w["p99"] for w in r["windowsMicros"]]
    return dict(offered=r["offeredPerSecond"], served=round(r["servedPerSecond"], 1), p50=l["p50"], p99=l["p99"], sent=m["p99"], max=l["max"], parts=parts,
                late=r["generatorLateMicros"]["p99"], cpu=round(r["clientCPUMicrosPerCall"] * r["calls"] / r["seconds"] / 1e6, 3),
                refused=refused, errors=errors), report["machine"]
def used(phase):
    """Shares of all processors: user and nice, system and interrupts, idle, stolen; and processors' worth of the three nodes."""
    stat = [[int(x) for x in open(f"{work}/{phase}-{end}.stat").read().split()[1:9]] for end in ("from", "to")]
    d = [b - a for a, b in zip(*stat)]
    node = {"process_cpu_seconds_total": 0, "starling_host_call_cpu_seconds_total": 0}
    for i in range(3):
        for end, sign in ("from", -1), ("to", 1):
            text = open(f"{work}/{phase}-{end}.metrics-{i}").read()
            for k in node:
                m = re.search(rf"^{k} (\S+)", text, re.M)
                node[k] += sign * float(m[1]) / length[phase] if m else 0
    nodes, calls = (round(x, 3) for x in node.values())
    share = lambda *at: round(sum(d[i] for i in at) / sum(d), 3)
    return dict(user=share(0, 1), system=share(2, 5, 6), idle=share(3, 4), stolen=share(7), nodes=nodes, calls=calls, busy=round((sum(d) - d[3] - d[4]) / sum(d) * os.cpu_count(), 3))
doc = dict(seconds=int(seconds), alone=int(alone), commit=commit, quietRate=float(quiet), used={})
for phase in "before", "during", "after":
    doc[phase] = {}
    for t in quiet_ones + (["loud"] if phase == "during" else []):
        doc[phase][t], doc["machine"] = result(phase, t)
    doc["used"][phase] = used(phase) | dict(generators=round(sum(r["cpu"] for r in doc[phase].values()), 3))
served = [doc["during"][t]["served"] for t in quiet_ones]
doc["jain"] = round(sum(served) ** 2 / (len(served) * sum(x * x for x in served)), 4)
doc["series"] = {}
for f in sorted(glob.glob(f"{work}/during-to.metrics-*")):
    for line in open(f):
        m = re.match(r"(starling_(?:frontend_calls_shed|frontend_pressure|host_refusals_total|host_crowd|host_share|partition_refusals_total|account_\w+)\S*) (\S+)", line)
        if m and float(m[2]):
            doc["series"][m[1]] = doc["series"].get(m[1], 0) + float(m[2])
times = lambda kind, tenants: (lambda alone, beside: dict(alone=alone, beside=beside, times=round(beside / alone, 2)))(
    together(kind, alone_phases, tenants), together(kind, ["during"], tenants))
doc["p99"] = {kind: {"all": times(kind, quiet_ones)} | {t: times(kind, [t]) for t in quiet_ones} for kind in ("due", "sent")}
doc["refused"] = {p: sum(doc[p][t]["refused"] for t in quiet_ones) for p in ("before", "during", "after")}
json.dump(doc, open(out, "w"), indent=1)
ms = lambda micros: f"{micros / 1000:.2f}"
for phase in "before", "during", "after":
    for t, r in doc[phase].items():
        print(f'{phase:6} {t:4} offered {r["offered"]:6.0f}/s served {r["served"]:7.1f}/s p50 {ms(r["p50"])} ms p99 {ms(r["p99"])} ms (parts {ms(min(r["parts"]))}-{ms(max(r["parts"]))}; sent {ms(r["sent"])}, generator late {ms(r["late"])}) refused {r["refused"]} errors {r["errors"]}')
for phase, u in doc["used"].items():
    print(f'{phase:6} machine: user {u["user"]:.0%} system {u["system"]:.0%} idle {u["idle"]:.0%} stolen {u["stolen"]:.0%}; of {u["busy"]:.2f} busy processors nodes {u["nodes"]:.2f}, generators {u["generators"]:.2f}, calls {u["calls"]:.2f}')
for kind, of in doc["p99"].items():
    print(f"p99 from {kind}, alone -> beside, ms (times):", "; ".join(f'{t} {ms(x["alone"])} -> {ms(x["beside"])} ({x["times"]})' for t, x in of.items()))
print(f'quiet calls refused {doc["refused"]}; loud shed {doc["series"].get("starling_frontend_calls_shed", 0):.0f}; Jain {doc["jain"]}; {out}')
PY
