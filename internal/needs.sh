#!/usr/bin/env bash
# Installs what the build, the tests and the demo need and this machine lacks, from Debian's packages.
set -euo pipefail
missing=()
need() { # need PACKAGE TEST...
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}
need python3 test -x /usr/bin/python3
need python3-pil /usr/bin/python3 -c 'import PIL'
need nodejs test -x /usr/bin/node
need iproute2 command -v ip
need nftables command -v nft
need make command -v make
need curl command -v curl
need gcc command -v gcc # the race detector links with it
need libc6-dev test -e /usr/include/stdlib.h
need qemu-system-x86 command -v qemu-system-x86_64 # microVMs
need erofs-utils command -v mkfs.erofs
need postgresql ls -d /usr/lib/postgresql/*/bin/initdb # a tenant's database, in the demo and the end-to-end tests
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
if [ "$(id -u)" != 0 ]; then
	echo "missing: ${missing[*]}; run as root, or install them with: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "installing from Debian's packages: ${missing[*]}"
apt-get update -qq
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
case " ${missing[*]} " in *" postgresql "*)
	# The package would make a database of its own and start it: it is told not to, this once.
	install postgresql-common
	conf=/etc/postgresql-common/createcluster.conf
	cp -p "$conf" "$conf.kept"
	trap 'mv "$conf.kept" "$conf"' EXIT
	sed -i -E '/^[[:space:]]*create_main_cluster/d' "$conf"
	echo 'create_main_cluster = false' >>"$conf"
	;;
esac
install "${missing[@]}"
