#!/usr/bin/env bash
# Puts gVisor's runsc into bin/, built from the Go module at the version vmpool/gvisor names. The module's checksum database
# vouches for the source; a built binary is kept in a cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^const Version = "\(.*\)"/\1/p' vmpool/gvisor/gvisor.go)
kept=${XDG_CACHE_HOME:-$HOME/.cache}/starling/runsc-$version
if [ ! -x "$kept/runsc" ]; then
	echo "building runsc $version (once: a minute or two)"
	mkdir -p "$kept/new"
	GOBIN=$kept/new CGO_ENABLED=0 GOFLAGS=-buildvcs=false go install -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" "gvisor.dev/gvisor/runsc@$version"
	mv "$kept/new/runsc" "$kept/runsc"
	rmdir "$kept/new"
fi
mkdir -p bin
cmp -s "$kept/runsc" bin/runsc || install -m 755 "$kept/runsc" bin/runsc
