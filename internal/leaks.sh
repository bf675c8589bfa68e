#!/usr/bin/env bash
# internal/leaks.sh before|after: remembers what runs on the machine, and fails when the tests left more of ours.
set -euo pipefail
state=${TMPDIR:-/tmp}/starling-leaks.$(id -u)
snapshot() {
	echo "processes $(ps -eo args= | grep -cE '(^|/)(starling(-guest|-vmd)?|runsc(-[a-z]+)?)( |$)' || true)"
	echo "microVMs $(ps -eo args= | grep -c '[q]emu-system.*sstreamport' || true)"
	echo "cgroups $(find /sys/fs/cgroup -type d -name '*starling*' 2>/dev/null | wc -l)"
	echo "mounts $(grep -c starling /proc/self/mountinfo || true)"
	echo "namespaces $(ip netns list 2>/dev/null | grep -c starling || true)"
	echo "folders $(find "${TMPDIR:-/tmp}" -maxdepth 1 -name '*starling*' ! -name 'starling-leaks*' 2>/dev/null | wc -l)"
}
case ${1:-} in
before) snapshot >"$state" ;;
after)
	for _ in 1 2 3 4 5 6 7 8 9 10; do # processes that were just killed may need a moment to be reaped
		if diff <(snapshot) "$state" >/dev/null; then break; fi
		sleep 0.3
	done
	if ! diff "$state" <(snapshot) >&2; then
		echo "left behind by the tests (before <, after >)" >&2
		exit 1
	fi
	echo "no process, cgroup, mount, namespace or temporary folder left behind"
	rm -f "$state"
	;;
*)
	echo "usage: $0 before|after" >&2
	exit 2
	;;
esac
