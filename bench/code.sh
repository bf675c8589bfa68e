#!/usr/bin/env bash
# bench/code.sh [HOSTS]: how a package of 200 MB, of which a call touches 2 MB, comes to hosts. One node keeps and decides, HOSTS nodes (1) in network
# namespaces run the function. Prints the first answer of each host and the bytes that moved. BIN=FILE measures another binary.
# INSTANCES=100 then starts so many instances on the first host. Needs root. RATE=50 limits every host's link to so many Mbit/s.
# ISOLATION=kata runs the function in that kind of sandbox. SMALL=8 starts so many packages of one line beside it first, one after the other.
set -euo pipefail
cd "$(dirname "$0")/.."
unset STARLING_SERVER STARLING_KEY STARLING_ACCOUNT STARLING_PROFILE
hosts=${1:-1}
bin=${BIN:-$PWD/bin/starling}
isolation=${ISOLATION:-process}
work=$(mktemp -d "${TMPDIR:-/tmp}/starling-code.XXXXXX")
export XDG_CONFIG_HOME=$work/config
name=sc$$
pids=()
finish() {
	local code=$?
	for p in "${pids[@]}"; do kill -TERM "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
	[ $code -eq 0 ] || tail -n 5 "$work"/*.log >&2
	for i in $(seq 0 "$hosts"); do ip netns delete "$name-$i" 2>/dev/null || true; done
	ip link delete "$name" 2>/dev/null || true
	rm -rf "$work"
	exit $code
}
trap finish EXIT
ip link add "$name" type bridge
ip addr add 10.213.7.254/24 dev "$name"
ip link set "$name" up
for i in $(seq 0 "$hosts"); do
	ip netns add "$name-$i"
	ip link add "$name.$i" type veth peer name eth0 netns "$name-$i"
	ip link set "$name.$i" master "$name" up
	ip -n "$name-$i" addr add "10.213.7.$((i + 1))/24" dev eth0
	ip -n "$name-$i" link set eth0 up
	ip -n "$name-$i" link set lo up
	[ -z "${RATE:-}" ] || tc -n "$name-$i" qdisc add dev eth0 root tbf rate "${RATE}mbit" burst 128k latency 200ms
done
in_net() { # in_net I COMMAND, in the background: nsenter and not "ip netns exec", which hides the control groups
	local i=$1
	shift
	exec nsenter --net="/run/netns/$name-$i" -- "$@"
}
field() { /usr/bin/python3 -c 'import json,sys; d={k.lower(): v for k, v in json.load(sys.stdin).items()}; print(d[sys.argv[1].lower()])' "$1"; }
await() {
	for _ in $(seq 300); do
		curl -fs -m 2 "http://$1:8081/readyz" >/dev/null && return
		sleep 0.1
	done
	return 1
}
/usr/bin/python3 - "$work/package.zip" <<'P'
import random, sys, zipfile
r = random.Random(1)
text = bytes(r.choice(b"ab") for _ in range(1 << 20))
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    z.writestr("main.py", """import os, time
HERE = os.path.dirname(__file__)
def handler(event, context):
    n = 0
    for i in range(0, 3000, 3000 // event.get("files", 30)):
        with open("%s/lib/d%02d/f%04d.txt" % (HERE, i % 60, i), "rb") as f:
            n += len(f.read())
    time.sleep(event.get("sleep", 0))
    return n
""")
    for i in range(3000):  # 67 KB each, 200 MB; compresses to a fifth or less
        off = r.randrange(len(text))
        z.writestr("lib/d%02d/f%04d.txt" % (i % 60, i), b"%06d" % i + (text[off:] + text)[:67000])
P
ip0=10.213.7.1
made=$("$bin" cluster init --data "$work/node0" --listen "$ip0:9000" --name bench --roles manager,frontend,scheduler -o json)
in_net 0 "$bin" node --data "$work/node0" --name origin --listen "$ip0:9000" --http "$ip0:8080" --admin "$ip0:8081" --roles manager,frontend,scheduler >"$work/node0.log" 2>&1 &
pids+=($!)
await $ip0
export STARLING_SERVER=http://$ip0:8080 STARLING_KEY
# Deployed before there are hosts, so that none of them holds a copy.
STARLING_KEY=$(field key <<<"$made")
/usr/bin/time -f 'deploy: %e s' "$bin" deploy "$work/package.zip" --name big --runtime python3.11 --handler main.handler --isolation "$isolation" --memory 128 --timeout 60000 >"$work/deploy.log" 2>&1 || { cat "$work/deploy.log" >&2; exit 1; }
tail -1 "$work/deploy.log"
for i in $(seq ${SMALL:-0}); do
	/usr/bin/python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1], "w").writestr("main.py", "def handler(e, c): return %s\n" % sys.argv[2])' "$work/small$i.zip" "$i"
	STARLING_KEY=$(field key <<<"$made") "$bin" deploy "$work/small$i.zip" --name "small$i" --runtime python3.11 --handler main.handler --isolation "$isolation" --memory 128 --timeout 60000 >/dev/null
done
for i in $(seq "$hosts"); do
	ip=10.213.7.$((i + 1))
	token=$(STARLING_KEY=$(field adminKey <<<"$made") "$bin" cluster token)
	in_net "$i" "$bin" node --data "$work/node$i" --name "host$i" --roles host --isolation "$isolation" --memory $((${INSTANCES:-1} * 128)) --pool 1 --listen "$ip:9000" --admin "$ip:8081" --join "$ip0:9000" --token "$token" >"$work/node$i.log" 2>&1 &
	pids+=($!)
	await "$ip"
done
ready() { # ready IP: a sandbox waits for the function, on the machine or emulated
	for _ in $(seq 600); do
		! curl -fs -m 2 "http://$1:8081/metrics" | grep -q '^starling_pool_ready{[^}]*runtime="python3.11"[^}]*} [1-9]' || break
		sleep 0.1
	done
	sleep 3
}
for i in $(seq "$hosts"); do ready "10.213.7.$((i + 1))"; done
bytes() { # bytes I: what node I says of blocks and packages that moved
	curl -fs -m 2 "http://10.213.7.$(($1 + 1)):8081/metrics" | grep -E '^starling_code_(block_bytes|fetched|blocks_damaged|keys|unpacked_total|shown_total|served)' | grep -v ' 0$' | tr '\n' ' '
}
link() { ip -n "$name-$1" -s -j link show eth0 | /usr/bin/python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["stats64"][sys.argv[1]]["bytes"])' "$2"; }
call() { # call PAYLOAD [FUNCTION]
	curl -sS -o "$work/answer" -w '%{http_code} %{time_total} s' -H "Authorization: Bearer $STARLING_KEY" -d "$1" "$STARLING_SERVER/v1/functions/${2:-big}/invocations"
	echo " $(head -c 80 "$work/answer")"
}
for i in $(seq ${SMALL:-0}); do
	echo "first answer of small package $i: $(call '{}' "small$i")"
	ready 10.213.7.2
done
before=$(link 0 tx)
if [ "$hosts" = 1 ] && [ -z "${INSTANCES:-}" ]; then
	echo "first answer: $(call '{}')"
	echo "link of the host at the first answer: $(($(link 0 tx) - before)) bytes; $(bytes 1)"
	echo "the same files again: $(call '{}')"
	sleep 15
	echo "link of the host 15 s later: $(($(link 0 tx) - before)) bytes; $(bytes 1)"
	echo "all files: $(call '{"files": 3000}')"
else
	for _ in $(seq $((hosts * ${INSTANCES:-1}))); do call '{"sleep": 6}' & calls+=($!); done
	wait "${calls[@]}"
	sleep 15
	echo "origin: sent $(($(link 0 tx) - before)) bytes; $(bytes 0)"
	for i in $(seq "$hosts"); do echo "host $i: $(bytes "$i")"; done
fi
du -sb "$work"/node0/bucket | awk '{print "bytes at the origin:", $1}'
