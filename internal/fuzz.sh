#!/usr/bin/env bash
# internal/fuzz.sh TIME: runs every fuzz target of the module for TIME, one after another.
set -euo pipefail
time=${1:-30s}
found=0
while IFS=: read -r file name; do
	pkg=./$(dirname "$file")
	found=$((found + 1))
	echo "== $pkg $name"
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" "$pkg"
done < <(git ls-files '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9]+' | sed -E 's/func //' | sort)
echo "$found fuzz targets, no finding"
