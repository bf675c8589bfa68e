#!/usr/bin/env bash
# The demo: a real cluster of three nodes on this machine, three real functions, called over HTTP and QUIC, a fourth that asks a
# PostgreSQL in its account's network; one node is killed and the calls go on; at the end nothing is left. KEEP=1 leaves the cluster running.
# DRIVER=gvisor isolates them with a kernel of their own in user space, DRIVER=kata with a microVM each (default: process).
# PHOTO=file.jpg uses a photo of yours instead of the one from Debian's package python-matplotlib-data.
set -euo pipefail
cd "$(dirname "$0")/.."
unset STARLING_SERVER STARLING_KEY STARLING_ACCOUNT STARLING_PROFILE
bin=$PWD/bin/starling
functions=$PWD/bin/functions
driver=${DRIVER:-process}
pool=2
[ "$driver" = process ] || pool=1 # a microVM that is emulated keeps a core busy while it starts
work=$(mktemp -d "${TMPDIR:-/tmp}/starling-demo.XXXXXX")
export XDG_CONFIG_HOME=$work/config
pids=()
tenant=()  # processes that hold the namespaces of the account's own network
database= # PostgreSQL in it

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { # show COMMAND...: prints the command as a person would type it, then runs it
	local text="$*"
	text=${text//$bin/starling}
	printf '$ %s\n' "${text//$PWD\//}" >&2
	"$@"
}
field() { /usr/bin/python3 -c 'import json,sys; d={k.lower(): v for k, v in json.load(sys.stdin).items()}; print(d[sys.argv[1].lower()])' "$1"; }

# What this machine holds of ours: sandboxes show as cgroups, mounts and processes in namespaces of their own.
spaces() { { readlink /proc/[0-9]*/ns/{pid,net,mnt} 2>/dev/null || true; } | sort -u; }
spaces >"$work/spaces"
cgroups() { find /sys/fs/cgroup -type d -name '*starling*' 2>/dev/null | sort; }
cgroups >"$work/cgroups"
mounts() { { grep -E 'starling|nsfs' /proc/self/mountinfo || true; } | awk '{print $5}' | sort; }
mounts >"$work/mounts"

stop_all() {
	local p
	for p in "${pids[@]}"; do kill -TERM "$p" 2>/dev/null || true; done
	for p in "${pids[@]}"; do
		for _ in $(seq 100); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
		kill -KILL "$p" 2>/dev/null || true
		wait "$p" 2>/dev/null || true
	done
	pids=()
}
stop_tenant() {
	touch "$work/stop" # also for a database that is still being made
	[ -z "$database" ] || while kill -INT "$database" 2>/dev/null; do sleep 0.05; done
	[ ${#tenant[@]} = 0 ] || kill "${tenant[@]}"
	wait
	tenant=()
}
finish() {
	local code=$?
	trap - EXIT
	if [ $code -ne 0 ]; then
		for log in "$work"/*.log; do
			[ -f "$log" ] && { printf '\n--- end of %s\n' "$(basename "$log")"; tail -15 "$log"; }
		done >&2
	fi
	stop_all
	stop_tenant
	rm -rf "$work"
	exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

# Nine ports that are free for TCP and UDP now.
read -r -a ports < <(/usr/bin/python3 - <<'PY'
import socket
held, out = [], []
while len(out) < 9:
    t = socket.socket(); t.bind(("127.0.0.1", 0)); held.append(t)
    u = socket.socket(type=socket.SOCK_DGRAM)
    try: u.bind(t.getsockname())
    except OSError: continue
    held.append(u); out.append(str(t.getsockname()[1]))
print(*out)
PY
)
quic() { echo "127.0.0.1:${ports[$1 - 1]}"; }
http() { echo "127.0.0.1:${ports[$1 + 2]}"; }
admin() { echo "127.0.0.1:${ports[$1 + 5]}"; }

start_node() { # start_node N [FLAG...]
	local n=$1
	shift
	"$bin" node --data "$work/node$n" --name "node$n" --listen "$(quic "$n")" --http "$(http "$n")" --admin "$(admin "$n")" --pool "$pool" --isolation "$driver" "${gateway[@]}" "$@" \
		>"$work/node$n.log" 2>&1 &
	pids[n - 1]=$!
	for _ in $(seq 300); do
		if curl -fs "http://$(admin "$n")/readyz" >/dev/null; then
			echo "node$n is ready: HTTP $(http "$n"), QUIC $(quic "$n"), process ${pids[n - 1]}"
			return
		fi
		kill -0 "${pids[n - 1]}" 2>/dev/null || break
		sleep 0.1
	done
	echo "node$n did not become ready" >&2
	return 1
}

# A network of the account's own: two namespaces without names, which end with their processes. Gateways are plugged into the
# uplink (10.20.0.2); at the other end of a cable is the tenant's (10.20.0.10), with a PostgreSQL that knows nothing of Starling.
hold() { # hold NAME: a namespace; its holder's process is in the variable NAME from now on
	unshare --net sleep infinity &
	printf -v "$1" %s $!
	tenant+=($!)
	until [ "$(readlink "/proc/$!/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
}
within() { # within HOLDER COMMAND...
	nsenter --net="/proc/$1/ns/net" "${@:2}"
}
make_network() {
	hold uplink
	hold inside
	ip link add office netns "$uplink" type veth peer name eth0 netns "$inside"
	within "$uplink" ip addr add 10.20.0.2/24 dev office
	within "$uplink" ip link set office up
	within "$inside" ip addr add 10.20.0.10/24 dev eth0
	within "$inside" ip link set eth0 up
	echo "{\"default/office\": {\"namespace\": \"/proc/$uplink/ns/net\"}}" >"$work/uplinks.json"
}
make_database() { # in the background: it takes a second or two
	local db=$work/postgres bin
	bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
	chmod 711 "$work" # PostgreSQL does not run as root
	install -d -o postgres -m 700 "$db"
	echo secret >"$db/password"
	chown postgres "$db/password"
	cd "$db"
	{
		runuser -u postgres -- "$bin/initdb" --no-sync -U shop --auth=scram-sha-256 --pwfile=password --encoding=UTF8 --no-locale -D "$db/data"
		echo 'host all all 10.20.0.0/24 scram-sha-256' >>"$db/data/pg_hba.conf"
		runuser -u postgres -- "$bin/postgres" --single -D "$db/data" postgres <<-'SQL'
			CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, city text NOT NULL)
			INSERT INTO customers VALUES (1, 'Ada', 'London'), (2, 'Grace', 'New York')
		SQL
	} >"$work/postgres.log" 2>&1
	[ ! -e "$work/stop" ] || exit 0
	exec nsenter --net="/proc/$inside/ns/net" setpriv --reuid=postgres --regid=postgres --init-groups "$bin/postgres" -D "$db/data" \
		-c listen_addresses=10.20.0.10 -c unix_socket_directories= -c fsync=off >>"$work/postgres.log" 2>&1
}
gateway=()
if [ "$driver" != gvisor ]; then
	make_network
	make_database &
	database=$!
	gateway=(--roles all,gateway --uplinks "$work/uplinks.json")
fi

step "A photo"
photo=${PHOTO:-}
if [ -z "$photo" ]; then
	photo=$work/photo.jpg
	kept=${XDG_CACHE_HOME:-$HOME/.cache}/starling/photo.jpg # a second demo needs no network
	if [ ! -f "$kept" ]; then
		mkdir -p "$work/deb" "$(dirname "$kept")"
		chmod 755 "$work" "$work/deb"
		(cd "$work/deb" && apt-get download -qq python-matplotlib-data 2>/dev/null)
		dpkg-deb --fsys-tarfile "$work"/deb/*.deb | tar -xO ./usr/share/matplotlib/mpl-data/sample_data/grace_hopper.jpg >"$kept.new"
		mv "$kept.new" "$kept"
	fi
	cp "$kept" "$photo"
fi
echo "$photo: $(stat -c %s "$photo") bytes, from ${PHOTO:+your file}${PHOTO:-Debian\'s package python-matplotlib-data (Grace Hopper, US Navy, public domain)}"

step "Three nodes"
made=$("$bin" cluster init --data "$work/node1" --listen "$(quic 1)" --name demo "${gateway[@]:0:2}" -o json)
key=$(field key <<<"$made")
root=$(field adminKey <<<"$made")
start_node 1
export STARLING_SERVER=http://$(http 1) STARLING_KEY=$key STARLING_QUIC_ADDR=$(quic 1)
for n in 2 3; do
	token=$(STARLING_KEY=$root "$bin" cluster token "${gateway[@]:0:2}")
	start_node "$n" --join "$(quic 1)" --token "$token"
done
export STARLING_PIN=${token##*.} # the second half of a join token is the fingerprint of the cluster's CA
STARLING_KEY=$root show "$bin" nodes

if [ "$driver" != process ]; then
	step "A clone of each runtime on each node"
	begun=$SECONDS
	for n in 1 2 3; do
		for rt in python3.11 nodejs20 provided; do
			until curl -fs "http://$(admin "$n")/metrics" | grep -q "^starling_pool_ready{.*runtime=\"$rt\".*} [1-9]"; do
				[ $((SECONDS - begun)) -lt 300 ] || { echo "no clone of $rt on node$n" >&2; exit 1; }
				sleep 0.3
			done
		done
	done
	echo "after $((SECONDS - begun)) s"
	grep -h -E 'microVMs|template built' "$work"/node*.log | sort -u | cut -c1-200 || true # templates are built where the cache has none
fi

step "Three functions"
for f in thumbnail hello-node orders-go; do show "$bin" deploy "$functions/$f.zip" --isolation "$driver"; done
show "$bin" functions

step "Called over HTTP, as any program would"
/usr/bin/python3 - "$photo" >"$work/photo.json" <<'PY'
import base64, json, sys
json.dump({"image": base64.b64encode(open(sys.argv[1], "rb").read()).decode(), "width": 160}, sys.stdout)
PY
echo '{"id":"o-17","items":[{"sku":"apple","quantity":3,"priceCents":125},{"sku":"pear","quantity":1,"priceCents":80}]}' >"$work/order.json"
echo '{"name":"starling"}' >"$work/hello.json"
call() { # call NODE NAME FILE: one call with curl; writes the answer to standard output
	echo "\$ curl -d @$(basename "$3") -H 'Authorization: Bearer \$STARLING_KEY' http://$(http "$1")/v1/functions/$2/invocations" >&2
	curl -sS --fail-with-body -m 30 --data-binary "@$3" -H 'Content-Type: application/json' -H "Authorization: Bearer $key" \
		"http://$(http "$1")/v1/functions/$2/invocations"
}
call 1 thumbnail "$work/photo.json" >"$work/thumbnail.json"
/usr/bin/python3 - "$work/thumbnail.json" bin/thumbnail.jpg <<'PY'
import base64, json, sys
answer = json.load(open(sys.argv[1]))
data = base64.b64decode(answer["image"])
assert data[:3] == b"\xff\xd8\xff", "the answer is no JPEG"
open(sys.argv[2], "wb").write(data)
print(f"wrote {sys.argv[2]}: {answer['width']}x{answer['height']}, {len(data)} bytes")
PY
call 2 hello "$work/hello.json"
echo
call 3 orders "$work/order.json"
echo

step "Called over QUIC"
show "$bin" invoke hello '{"name":"QUIC"}' --quic --timing
echo
show "$bin" invoke orders --file "$work/order.json" --quic --timing
echo
show "$bin" invoke thumbnail --file "$work/photo.json" --quic >"$work/again.json"
cmp "$work/thumbnail.json" "$work/again.json" && echo "the same thumbnail as over HTTP"

step "A database in the account's own network"
echo '{"id":2}' >"$work/customer.json"
url='postgres://shop:secret@10.20.0.10/postgres?sslmode=disable'
if [ "$driver" != gvisor ]; then
	show "$bin" network create office --cidr 10.20.0.0/24
	show "$bin" deploy "$functions/customers-go.zip" --isolation "$driver" --network office --env "DATABASE_URL=$url"
	show "$bin" deploy "$functions/customers-go.zip" --name customers-alone --isolation "$driver" --env "DATABASE_URL=$url"
	until grep -q 'ready to accept connections' "$work/postgres.log"; do
		kill -0 "$database" || { echo "PostgreSQL did not start" >&2; exit 1; }
		sleep 0.05
	done
	show "$bin" network test office 10.20.0.10:5432
	call 1 customers "$work/customer.json"
	printf '\nThe same code without the network:\n'
	if show "$bin" invoke customers-alone --file "$work/customer.json" 2>"$work/refused"; then
		echo "a function without a network reached the database" >&2
		exit 1
	fi
	cat "$work/refused"
	grep -q 'network is unreachable' "$work/refused"
else
	show "$bin" network create office --cidr 10.20.0.0/24
	if show "$bin" deploy "$functions/customers-go.zip" --isolation "$driver" --network office --env "DATABASE_URL=$url"; then
		echo "a function with isolation $driver was given a network: this demo does not know yet" >&2
		exit 1
	fi
	echo "networks need isolation process or kata so far: the demo goes on without"
fi

step "Who decides, and what was printed"
STARLING_KEY=$root "$bin" partitions >"$work/partitions"
head -6 "$work/partitions"
echo "... $(($(wc -l <"$work/partitions") - 1)) partitions in all"
show "$bin" logs hello --limit 6

step "One node is killed (SIGKILL), and the calls go on"
victim=2
kill -KILL "${pids[victim - 1]}"
wait "${pids[victim - 1]}" 2>/dev/null || true
since=$(date +%s%N)
for n in 1 3; do
	for f in thumbnail:photo hello:hello orders:order ${gateway:+customers:customer}; do
		# A call that was on its way to the dead host may have run: it is answered with 503 and the caller decides. This one asks again.
		refused=0
		until call "$n" "${f%%:*}" "$work/${f#*:}.json" 2>/dev/null >"$work/answer"; do
			refused=$((refused + 1))
			[ $refused -lt 20 ] || { cat "$work/answer" >&2; exit 1; }
		done
		echo "node$n ${f%%:*}: $(stat -c %s "$work/answer") bytes, $((($(date +%s%N) - since) / 1000000)) ms after the kill$([ $refused = 0 ] || echo ", asked $((refused + 1)) times")"
	done
done
STARLING_KEY=$root show "$bin" nodes

if [ "${KEEP:-}" = 1 ]; then
	step "The cluster keeps running (KEEP=1)"
	cat <<EOF
export STARLING_SERVER=http://$(http 1) STARLING_KEY=$key STARLING_QUIC_ADDR=$(quic 1) STARLING_PIN=$STARLING_PIN
An administrator's key: $root
Stop it with: kill ${pids[0]} ${pids[2]} ${tenant[*]} $database && rm -rf $work
EOF
	trap - EXIT
	exit 0
fi

step "Everything is stopped, and nothing is left"
nodes=("${pids[@]}" "${tenant[@]}" $database)
stop_all
stop_tenant
clean=no
for _ in $(seq 50); do # the kernel may take a moment to reap what was killed
	left_spaces=$(comm -13 "$work/spaces" <(spaces) | wc -l)
	left_cgroups=$(comm -13 "$work/cgroups" <(cgroups) | wc -l)
	left_mounts=$(comm -13 "$work/mounts" <(mounts) | wc -l)
	left_processes=0
	for p in "${nodes[@]}"; do if [ -d "/proc/$p" ]; then left_processes=$((left_processes + 1)); fi; done
	for d in /proc/[0-9]*; do
		if [ "$d" != "/proc/$$" ] && { tr '\0' ' ' <"$d/cmdline"; } 2>/dev/null | grep -qF -- "$work"; then left_processes=$((left_processes + 1)); fi
	done
	if [ "$left_spaces$left_cgroups$left_mounts$left_processes" = 0000 ]; then clean=yes; break; fi
	sleep 0.2
done
echo "processes left: $left_processes, cgroups left: $left_cgroups, mounts left: $left_mounts, namespaces left: $left_spaces"
[ $clean = yes ]
echo "The thumbnail is in bin/thumbnail.jpg."
