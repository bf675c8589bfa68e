#!/usr/bin/env bash
# vmpool/kata/images/roots.sh [DIR]: makes what microVMs boot into DIR: Debian's cloud kernel with the few modules that a guest
# needs (unless the small kernel is there, see kernel.sh), and for each runtime a read-only root of files of Debian packages.
# What is there and still fits the packages of this machine is left alone.
set -euo pipefail
out=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/starling/guest}
mkdir -p "$out"
out=$(cd "$out" && pwd)
exec 9>"$out/lock"
flock 9 # nodes that start together make them once
work=$(mktemp -d "${TMPDIR:-/tmp}/starling-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
begun=$SECONDS
say() { printf '%3d s  %s\n' $((SECONDS - begun)) "$*"; }

# A kernel: its modules are loaded in the order of their names.
modules=(virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci block/virtio_blk char/virtio_console)
cloud_kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'; }
kernel() {
	local package release n=10 m from
	package=$(cloud_kernel)
	if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then # a machine that never asked for the lists
		apt-get update -qq
		package=$(cloud_kernel)
	fi
	if [ -f "$out/kernel/vmlinuz" ] && { [ -f "$out/kernel/small" ] || [ "$(cat "$out/kernel/package")" = "$package" ]; }; then
		say "kernel: $(cat "$out/kernel/version"), kept"
		return
	fi
	say "kernel: fetching Debian's package $package"
	mkdir "$work/deb" && chmod 777 "$work" "$work/deb"
	if ! (cd "$work/deb" && apt-get download -qq "$package" 2>"$work/errors"); then
		if [ -f "$out/kernel/vmlinuz" ]; then
			say "kernel: $(cat "$out/kernel/version"), kept, because $package cannot be fetched"
			return
		fi
		cat "$work/errors" >&2
		return 1
	fi
	dpkg-deb -x "$work"/deb/*.deb "$work/image"
	release=${package#linux-image-}
	rm -rf "$out/kernel.new"
	mkdir -p "$out/kernel.new/modules"
	from=$work/image/lib/modules/$release/kernel
	for m in $(printf 'drivers/%s ' "${modules[@]}") lib/libcrc32c fs/erofs/erofs; do
		cp "$from/$m.ko" "$out/kernel.new/modules/$n-$(basename "$m").ko"
		n=$((n + 1))
	done
	cp "$work/image/boot/vmlinuz-$release" "$out/kernel.new/vmlinuz"
	echo "$package" >"$out/kernel.new/package"
	echo "$release" >"$out/kernel.new/version"
	rm -rf "$out/kernel"
	mv "$out/kernel.new" "$out/kernel"
	say "kernel: $release"
}

# closure PACKAGE...: the installed packages that these need, without the package manager itself.
closure() {
	apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
		grep -E '^[a-z0-9]' | sed 's/:.*//' | sort -u | grep -vxE 'dpkg|tar|perl.*|debconf.*|cdebconf.*|libpam.*|init-system-helpers|openssl' |
		xargs dpkg-query -W -f '${db:Status-Abbrev} ${Package}=${Version}:${Architecture}\n' 2>/dev/null | awk '$1 == "ii" { print $2 }'
}

# root NAME PACKAGE...: a root with the files of the packages and of all they need.
root() {
	local name=$1 list dir
	shift
	list=$(closure "$@"; sha256sum "$0" | cut -c1-64)
	if [ -f "$out/$name.erofs" ] && [ "$list" = "$(cat "$out/$name.packages")" ]; then
		say "$name: $(stat -c %s "$out/$name.erofs") bytes, kept"
		return
	fi
	say "$name: $(wc -l <<<"$list") packages"
	dir=$work/$name
	mkdir -p "$dir"/{usr/{bin,lib,lib64,sbin},etc/ssl/certs,proc,sys,dev,tmp,run,root,opt,var/{task,runtime,tmp},home}
	for d in bin lib lib64 sbin; do ln -s "usr/$d" "$dir/$d"; done
	while IFS== read -r package version; do
		case $package in *[!a-z0-9.+-]*) continue ;; esac
		[ -n "$version" ] || continue
		dpkg -L "$package:${version##*:}" 2>/dev/null || dpkg -L "$package"
	done <<<"$list" | grep -vE '^/usr/share/(doc|man|info|locale|lintian|bash-completion|pixmaps|applications|doc-base|menu)|^/usr/include/|^/usr/share/nodejs/|^/etc/(init|cron|apt)|^/\.$|^/(proc|sys|dev|run|tmp)' |
		sort -u >"$work/files"
	{ grep -E '/python3?[^/]*/' "$work/files" || true; } | xargs -r -n1 dirname | sort -u | while read -r d; do # what was compiled when it was installed
		if [ -d "$d/__pycache__" ]; then find "$d/__pycache__" -type f; fi
	done >>"$work/files"
	sed 's,^/,,' "$work/files" | while read -r f; do if [ -e "/$f" ] || [ -L "/$f" ]; then echo "$f"; fi; done |
		tar -C / -c --no-recursion -T - | tar -C "$dir" -x --keep-directory-symlink
	cp /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/" 2>/dev/null || true
	cp /etc/ld.so.cache "$dir/etc/"
	printf 'root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:1000:1000:sandbox:/tmp:/usr/sbin/nologin\n' >"$dir/etc/passwd"
	printf 'root:x:0:\nsandbox:x:1000:\n' >"$dir/etc/group"
	printf '127.0.0.1 localhost starling\n' >"$dir/etc/hosts"
	printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$dir/etc/nsswitch.conf"
	printf 'nameserver 127.0.0.1\n' >"$dir/etc/resolv.conf"
	ln -sf /run/hostname "$dir/etc/hostname"
	ln -sf /run/machine-id "$dir/etc/machine-id"
	ln -sf /usr/share/zoneinfo/UTC "$dir/etc/localtime"
	mkfs.erofs --all-root --quiet "$out/$name.new" "$dir" >/dev/null 2>&1 || mkfs.erofs --all-root "$out/$name.new" "$dir" >&2
	mv "$out/$name.new" "$out/$name.erofs"
	echo "$list" >"$out/$name.packages"
	rm -rf "$dir"
	say "$name: $(stat -c %s "$out/$name.erofs") bytes"
}

kernel
base=(base-files libc-bin coreutils dash ca-certificates)
root python3.11 "${base[@]}" python3 python3-pil
root nodejs20 "${base[@]}" nodejs
root provided "${base[@]}"
