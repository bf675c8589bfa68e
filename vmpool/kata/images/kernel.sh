#!/usr/bin/env bash
# vmpool/kata/images/kernel.sh [DIR]: builds a small guest kernel from Debian's kernel source into DIR/kernel, where it takes
# the place of Debian's cloud kernel. It takes a quarter of an hour on two cores and is kept; REBUILD=1 builds it again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/starling/guest}
jobs=${JOBS:-$(nproc)}
mkdir -p "$out"
if [ -f "$out/kernel/small" ] && cmp -s "$here/kernel.config" "$out/kernel/config.asked" && [ -z "${REBUILD:-}" ]; then
	echo "the small kernel is there: $out/kernel/vmlinuz ($(cat "$out/kernel/version")); REBUILD=1 builds it again"
	exit 0
fi
missing=()
for package in linux-source-6.1 flex bison bc libelf-dev gcc libc6-dev make lz4 xz-utils; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -ne 0 ]; then
	echo "installing from Debian's packages: ${missing[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/starling-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "unpacking the source"
tar -xJf /usr/src/linux-source-6.1.tar.xz -C "$work" --strip-components=1
cd "$work"
make -s tinyconfig
scripts/kconfig/merge_config.sh -m .config "$here/kernel.config" >/dev/null
make -s olddefconfig
while read -r line; do # an option that was not taken is a kernel that does not boot, half an hour later
	grep -qxF "$line" .config || { [[ $line == *=n ]] && ! grep -q "^${line%=n}=" .config; } || { echo "the kernel has no $line" >&2; exit 1; }
done < <(grep '^CONFIG_' "$here/kernel.config")
echo "compiling with $jobs jobs"
begun=$SECONDS
total=1300 # about as many objects as this configuration has
make -j"$jobs" bzImage 2>"$work/errors" | awk -v total=$total '
	/^  (CC|AS) / { n++; if (n % 100 == 0) { printf "%d of about %d files\n", n, total; fflush() } }' || { tail -20 "$work/errors" >&2; exit 1; }
[ -f arch/x86/boot/bzImage ] || { tail -20 "$work/errors" >&2; exit 1; }
rm -rf "$out/kernel.new"
mkdir -p "$out/kernel.new/modules"
cp arch/x86/boot/bzImage "$out/kernel.new/vmlinuz"
cp "$here/kernel.config" "$out/kernel.new/config.asked"
make -s kernelrelease >"$out/kernel.new/version"
touch "$out/kernel.new/small"
rm -rf "$out/kernel"
mv "$out/kernel.new" "$out/kernel"
echo "$out/kernel/vmlinuz: $(cat "$out/kernel/version"), $(stat -c %s "$out/kernel/vmlinuz") bytes, in $((SECONDS - begun)) s"
