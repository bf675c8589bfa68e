#!/usr/bin/env bash
# bench/run.sh warm|cold|burst|refill|floor [FLAG...]: runs one scenario against a fresh node of this machine and keeps
# the report in bench/results. Further flags go to "starling bench"; FUNCTION=echo-node chooses another function, and
# NODE_FLAGS="--memory 40000" goes to "starling node". POOL=32 keeps so many warm sandboxes of each runtime and waits until they are.
# ACCOUNTS=4 calls as many functions of each of four accounts, cold. ISOLATION=gvisor or kata isolates the functions so.
# refill is warm twice: alone, and beside STARTS=10 first calls of other functions a second, for which the pool is refilled.
set -euo pipefail
cd "$(dirname "$0")/.."
unset STARLING_SERVER STARLING_KEY STARLING_ACCOUNT STARLING_PROFILE
scenario=${1:?usage: bench/run.sh warm|cold|burst|refill|floor [flag...]}
shift
bin=$PWD/bin/starling
function=${FUNCTION:-echo-python}
out=bench/results/$(date -u +%Y%m%d-%H%M%S)-$scenario${FUNCTION:+-$FUNCTION}
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ "$scenario" = floor ]; then
	exec "$bin" bench floor --commit "$commit" --out "$out" "$@"
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/starling-bench.XXXXXX")
export XDG_CONFIG_HOME=$work/config
pids=()
finish() {
	local code=$?
	for p in "${pids[@]}"; do kill -TERM "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do wait "$p" 2>/dev/null || true; done
	[ $code -eq 0 ] || tail -15 "$work/node.log" >&2
	rm -rf "$work"
	exit $code
}
trap finish EXIT
read -r quic http admin quic2 admin2 < <(/usr/bin/python3 -c '
import socket
s = [socket.socket() for _ in range(5)]
[x.bind(("127.0.0.1", 0)) for x in s]
print(*("127.0.0.1:%d" % x.getsockname()[1] for x in s))')
field() { /usr/bin/python3 -c 'import json,sys; d={k.lower(): v for k, v in json.load(sys.stdin).items()}; print(d[sys.argv[1].lower()])' "$1"; }
isolation=${ISOLATION:+--isolation $ISOLATION}
warm=${POOL:+--pool $POOL --pool-strong $POOL}
roles=${SPLIT:+manager,frontend,scheduler} # SPLIT=1: the functions run on a second node, every call crosses to it over QUIC
made=$("$bin" cluster init --data "$work/node" --listen "$quic" --name bench ${roles:+--roles $roles} -o json)
"$bin" node --data "$work/node" --name bench --listen "$quic" --http "$http" --admin "$admin" ${roles:+--roles $roles} --memory 400000 $isolation ${NODE_FLAGS:-} $warm >"$work/node.log" 2>&1 &
pids+=($!)
await() { # await ADMIN PID: until the node is ready
	for _ in $(seq 300); do
		curl -fs "http://$1/readyz" >/dev/null && return
		kill -0 "$2"
		sleep 0.1
	done
}
await "$admin" "${pids[0]}"
metered=http://$admin
if [ -n "${SPLIT:-}" ]; then
	token=$(STARLING_SERVER=http://$http STARLING_KEY=$(field adminKey <<<"$made") "$bin" cluster token)
	"$bin" node --data "$work/node2" --name host --roles host --memory 400000 $isolation --listen "$quic2" --admin "$admin2" --join "$quic" --token "$token" >>"$work/node.log" 2>&1 &
	pids+=($!)
	await "$admin2" "${pids[1]}"
	metered=$metered,http://$admin2
fi
# The pool of a fresh node fills while its first calls come; POOL measures the calls of a node that has run for a while.
for _ in $(seq 600); do
	[ -n "${POOL:-}" ] || break
	ready=$(curl -fs "http://$admin/metrics" | awk -v n="$POOL" '/^starling_pool_ready[{]/ && $2 >= n' | wc -l)
	[ "$ready" -lt 3 ] || break
	sleep 0.2
done
export STARLING_SERVER=http://$http STARLING_KEY=$(field key <<<"$made") STARLING_ADMIN=$metered STARLING_QUIC_ADDR=$quic
STARLING_PIN=$(STARLING_KEY=$(field adminKey <<<"$made") "$bin" cluster token | sed 's/.*\.//')
export STARLING_PIN
[ -z "${ISOLATION:-}" ] || STARLING_KEY=$(field adminKey <<<"$made") "$bin" cluster isolation --default "$ISOLATION" >/dev/null
if [ "$scenario" = cold ] && [ -n "${ACCOUNTS:-}" ]; then
	# An account has 1,000 functions at most. Each does its calls, holds its instances, and then comes the next.
	STARLING_KEY=$(field adminKey <<<"$made") "$bin" cluster isolation --allow-shared-kernel >/dev/null
	for i in $(seq "$ACCOUNTS"); do
		STARLING_KEY=$(field adminKey <<<"$made") "$bin" account create "bench$i" --no-key >/dev/null
		key=$(STARLING_KEY=$(field adminKey <<<"$made") "$bin" account key create "bench$i" -o json | field secret)
		STARLING_KEY=$key "$bin" bench cold --package "bin/functions/$function.zip" --commit "$commit" --out "$out-$i" "$@" --hold 2h 2>"$work/bench$i" &
		pids+=($!)
		until grep -qs '^holding' "$work/bench$i"; do
			kill -0 "${pids[-1]}" 2>/dev/null || { cat "$work/bench$i" >&2; exit 1; }
			sleep 0.5
		done
		sed "s/^holding/account $i holds/" "$work/bench$i" >&2
	done
	echo "holding all for 30s" >&2
	sleep 30
	for i in $(seq "$ACCOUNTS"); do # killed: they would delete each function
		kill -KILL "${pids[-1]}"
		unset 'pids[-1]'
	done
elif [ "$scenario" = cold ]; then
	"$bin" bench cold --package "bin/functions/$function.zip" --meter-admin --commit "$commit" --out "$out" "$@"
elif [ "$scenario" = refill ]; then
	"$bin" deploy "bin/functions/$function.zip" --memory "${MEMORY:-1769}"
	"$bin" bench warm --function "$function" --no-floor --commit "$commit" --out "$out-alone" "$@"
	"$bin" bench cold --package "bin/functions/$function.zip" -n $((${STARTS:-10} * 40)) --rate "${STARTS:-10}" --no-floor --commit "$commit" --out "$out-starts" >"$work/starts" 2>"$work/deployed" &
	starts=$!
	pids+=("$starts")
	cold() { curl -fs "http://$admin/metrics" | awk '/^starling_instance_start_seconds_count/ { n += $2 } END { print n + 0 }'; }
	before=$(cold)
	until [ "$(cold)" -gt "$before" ]; do
		kill -0 "$starts" # starts are made for 40 s from now on
		sleep 0.2
	done
	"$bin" bench warm --function "$function" --no-floor --commit "$commit" --out "$out-beside" "$@"
	wait "$starts"
	cat "$work/starts"
else
	"$bin" deploy "bin/functions/$function.zip" --memory "${MEMORY:-1769}" # a whole CPU: the platform is measured, not the function's share
	"$bin" bench "$scenario" --function "$function" --meter-admin --commit "$commit" --out "$out" "$@"
fi
