#!/usr/bin/env bash
# bench/functions/build.sh OUT: makes a zip of each function in this folder, ready for "starling deploy".
# Functions in Go are compiled to a static bootstrap; the others are packed as they are.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?usage: build.sh OUT}"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for dir in "$here"/*/; do
	name=$(basename "$dir")
	mkdir "$work/$name"
	if [ -f "$dir/main.go" ]; then
		(cd "$here/../.." && CGO_ENABLED=0 go build -trimpath -tags lambda.norpc -ldflags '-s -w' -o "$work/$name/bootstrap" "./bench/functions/$name")
		cp "$dir/starling.yaml" "$work/$name/"
	else
		find "$dir" -maxdepth 1 -type f -exec cp {} "$work/$name/" \;
	fi
	/usr/bin/python3 - "$work/$name" "$out/$name.zip" <<'PY'
import os, sys, zipfile
source, target = sys.argv[1:]
with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as z:
    for name in sorted(os.listdir(source)):
        path = os.path.join(source, name)
        entry = zipfile.ZipInfo(name)  # a fixed time: the same files give the same zip
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = (0o100755 if os.access(path, os.X_OK) else 0o100644) << 16
        with open(path, "rb") as f:
            z.writestr(entry, f.read())
PY
	echo "$out/$name.zip"
done
