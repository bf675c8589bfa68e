#!/usr/bin/env bash
# internal/soak.sh EVENTS: runs simulated worlds, 10,000 at a time, until one fails or it is stopped.
set -uo pipefail
at=1
while go test -count=1 -v ./sim -run Whatever -args -from "$at" -seeds 10000 -events "$1"; do
	at=$((at + 10000))
done
exit 1
