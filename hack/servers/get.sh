#!/usr/bin/env bash
# Prints the path of a server program, which it gets if need be: a mariadbd or mysqld, or a script that becomes one, as
# MYSQLLOCK_TEST_SERVER takes it. It needs no root and installs nothing in the system.
#
#	hack/servers/get.sh mariadb-10.5
#	hack/servers/get.sh mariadb-10.11
#	hack/servers/get.sh mariadb-11.8
#	hack/servers/get.sh mysql-9            the newest 9.x that there is
#	hack/servers/get.sh mysql-8.4          or mysql-8.0: only where installed, as Debian has none
#	hack/servers/get.sh galera             a MariaDB that forms clusters, for MYSQLLOCK_TEST_GALERA
#	hack/servers/get.sh haproxy            or etcd, or mysql-router, for hack/engines.sh
#
# What is installed counts, if it has the version. Else, on Debian, apt downloads the packages of the release that has
# it, and they are unpacked in ${XDG_CACHE_HOME:-~/.cache}/go-leaderelection-mysql/servers, where they are run in place:
# some seconds and 70 to 260 MB each, once. Delete a folder there to have it made anew.
#
# MYSQLLOCK_SERVER_MYSQL_8_4=/path/to/mysqld (and so on) names a program that is searched for by none of that.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

exec 3>&1 >&2 # the result goes to stdout, all else to stderr

name=${1:-}
[ $# = 1 ] && [ -n "$name" ] || fail "one name is needed, such as mariadb-11.8 (the first lines of this script have them all)."
cache=${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}/go-leaderelection-mysql/servers

found() {
	printf '%s\n' "$1" >&3
	exit 0
}

# is PROGRAM NAME reports whether that is what the program is.
is() {
	local text family=${2%%-*} version=${2#*-}
	text=$("$1" --no-defaults --version 2>/dev/null) || return 1
	case $text in
	*MariaDB*) [ "$family" = mariadb ] ;;
	*) [ "$family" = mysql ] ;;
	esac && case $text in *"Ver $version."*) true ;; *) false ;; esac
}

# installed NAME prints the program that the system has.
installed() {
	local program
	for program in $(find_servers); do
		if is "$program" "$1"; then
			printf '%s\n' "$program"
			return
		fi
	done
}

# --- Debian ---

is_debian() { [ "$( (. /etc/os-release && printf '%s' "$ID") 2>/dev/null)" = debian ] && have apt-get && have dpkg-deb; }

# mirror prints where this machine's own apt gets its packages.
mirror() {
	local codename
	codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
	# shellcheck disable=SC2016 # apt fills these in
	apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
		awk -v own="$codename" '$1 == own { print $2; exit } $2 !~ /security/ && !other { other = $2 } END { if (other && NR) print other }' | sed -n 1p
}

# unpack FOLDER RELEASE PACKAGE... has apt download packages of a release with all that they need, and unpacks them.
# Apt has a configuration and a state of its own meanwhile, so that it neither changes those of the machine nor needs
# root. It verifies signatures as ever.
unpack() {
	local folder=$1 release=$2 uri own options='signed-by=/usr/share/keyrings/debian-archive-keyring.gpg' deb
	shift 2
	uri=$(mirror)
	[ -n "$uri" ] || fail "this machine's apt has no source of packages, so there is none for $name."
	own=$(mktemp -d)
	trap 'rm -rf "$own" "$folder.new.$$"' EXIT
	mkdir -p "$own/etc" "$own/state/lists/partial" "$own/cache/archives/partial"
	: >"$own/status"
	# A mirror's copy of the release that always changes may be older than the week for which its list is valid.
	if [ "$release" = sid ]; then options="$options check-valid-until=no"; fi
	printf 'deb [%s] %s %s main\n' "$options" "$uri" "$release" >"$own/etc/sources.list"
	cat >"$own/apt.conf" <<-END
		Dir::Etc "$own/etc";
		Dir::Etc::sourcelist "$own/etc/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::parts "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		Dir::State "$own/state";
		Dir::State::status "$own/status";
		Dir::Cache "$own/cache";
		APT::Install-Recommends "false";
		APT::Sandbox::User "";
		Acquire::Languages "none";
		Debug::NoLocking "true";
	END
	say "$name is not installed; apt downloads it as of Debian's $release, to run it in $folder"
	APT_CONFIG=$own/apt.conf apt-get -qq update &&
		APT_CONFIG=$own/apt.conf apt-get -qq --yes --download-only install "$@" >"$own/log" 2>&1 || {
		if [ -f "$own/log" ]; then tail -n 20 "$own/log"; fi
		fail "apt did not bring $* of Debian's $release (the messages above say why)." \
			"Set $variable to the path of such a server program, and run this again."
	}
	# In Debian /lib is /usr/lib and so on; without that, packages that say one and packages that say the other part.
	mkdir -p "$folder.new.$$/usr/bin" "$folder.new.$$/usr/sbin" "$folder.new.$$/usr/lib" "$folder.new.$$/usr/lib64"
	for deb in bin sbin lib lib64; do ln -s "usr/$deb" "$folder.new.$$/$deb"; done
	for deb in "$own"/cache/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$folder.new.$$" --keep-directory-symlink --no-same-owner \
			--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='*/perl*'
	done
	mv -T "$folder.new.$$" "$folder" || fail "$folder is there already, without what it should hold." "Delete it, and run this again."
	rm -rf "$own"
	trap - EXIT
}

# script FOLDER PROGRAM writes FOLDER/server, which runs a program of packages that are unpacked there: by their own
# dynamic linker, with their own libraries.
script() {
	local folder=$1 program=$2 share linker libraries
	# -xtype: in older releases one of the two is a link that is absolute, to nowhere here.
	linker=$(find "$folder/usr/lib64" "$folder/usr/lib" -maxdepth 2 -name 'ld-linux*.so.*' -xtype f | sed -n 1p)
	libraries=$(find "$folder/usr/lib" -maxdepth 1 -name '*-linux-gnu*' | sed -n 1p)
	share=$folder/usr/share/${program%d}
	if [ "$program" = mysqld ]; then share=$folder/usr/share/mysql; fi
	cat >"$folder/server.new" <<-END
		#!/bin/sh
		exec '$linker' --library-path '$libraries' '$folder/usr/sbin/$program' "\$@" \\
			--basedir='$folder/usr' --lc-messages-dir='$share' --character-sets-dir='$share/charsets' --plugin-dir='$folder/usr/lib/mysql/plugin'
	END
	chmod +x "$folder/server.new"
	mv "$folder/server.new" "$folder/server"
}

# --- servers ---

# server NAME RELEASE PROGRAM PACKAGE... finds a server, or gets it from that release of Debian.
server() {
	local program folder=$cache/$1
	name=$1
	program=$(installed "$name")
	if [ -n "$program" ]; then found "$program"; fi
	if is "$folder/server" "$name"; then found "$folder/server"; fi
	if [ -n "$2" ] && is_debian; then
		mkdir -p "$cache"
		unpack "$folder" "$2" "${@:4}"
		script "$folder" "$3"
		is "$folder/server" "$name" && found "$folder/server"
		"$folder/server" --no-defaults --version || true
		fail "what is in Debian's $2 is not $name (the line above says what it is)."
	fi
	local reason='Debian has no package of it'
	if [ -n "$2" ]; then reason='this is not Debian, which has it'; fi
	fail "$name is not installed, and $reason." \
		"Do one of these:" \
		"- install it by the system's package manager, if that has this version (macOS: brew install ${name%%-*}@${name#*-})" \
		"- set $variable to the path of such a server program" \
		"- run it by a container engine: docker run --rm -p 3306:3306 -e MYSQL_ROOT_PASSWORD=throwaway ${name%%-*}:${name#*-}" \
		"  and, instead of this, test by: MYSQLLOCK_TEST_DSN='root:throwaway@tcp(127.0.0.1:3306)/' go test ./mysqllock/..." \
		"  (tests that crash a server need a program, and fail)"
}

# galera finds MariaDB and Galera, or gets both, and makes a program of them that is a node of a cluster.
galera() {
	local folder=$cache/galera program='' candidate library
	library=$(find /usr/lib/galera /usr/lib/galera-4 /usr/lib64/galera /usr/lib64/galera-4 -name libgalera_smm.so 2>/dev/null | sed -n 1p || true)
	for candidate in $(find_servers); do
		case $("$candidate" --no-defaults --version 2>/dev/null || true) in
		*MariaDB*)
			program=$candidate
			break
			;;
		esac
	done
	if [ -z "$library" ] || [ -z "$program" ]; then
		if [ ! -x "$folder/server" ]; then
			is_debian || fail "MariaDB and Galera, by which it forms clusters, are not both installed, and this is not Debian, which has both." \
				"Install them by the system's package manager (Fedora: mariadb-server galera) and run this again."
			mkdir -p "$cache"
			unpack "$folder" bookworm mariadb-server-core galera-4
			script "$folder" mariadbd
		fi
		program=$folder/server library=$folder/usr/lib/galera/libgalera_smm.so
	fi
	folder=$cache/galera-node
	mkdir -p "$folder"
	{
		printf "#!/bin/sh\nprogram='%s'\nlibrary='%s'\n" "$program" "$library"
		cat hack/servers/galera-node.sh
	} >"$folder/mariadbd.$$"
	cp hack/servers/wsrep_sst_mysqllock "$folder/wsrep_sst_mysqllock.$$"
	chmod +x "$folder/mariadbd.$$" "$folder/wsrep_sst_mysqllock.$$"
	mv "$folder/wsrep_sst_mysqllock.$$" "$folder/wsrep_sst_mysqllock"
	mv "$folder/mariadbd.$$" "$folder/mariadbd"
	found "$folder/mariadbd"
}

# tool NAME RELEASE PATH LIBRARIES PACKAGE gets a program that is no server, from that release of Debian. LIBRARIES are
# folders of its own, in that of the packages.
tool() {
	local folder=$cache/$1 linker libraries own
	if [ ! -x "$folder/server" ]; then
		is_debian || fail "$1 is got from Debian's packages, and this is not Debian."
		mkdir -p "$cache"
		if [ ! -d "$folder" ]; then unpack "$folder" "$2" "$5"; fi
		linker=$(find "$folder/usr/lib64" "$folder/usr/lib" -maxdepth 2 -name 'ld-linux*.so.*' -xtype f | sed -n 1p)
		libraries=$(find "$folder/usr/lib" -maxdepth 1 -name '*-linux-gnu*' | sed -n 1p)
		for own in $4; do libraries+=:$folder/$own; done
		printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "'$linker'" "'$libraries'" "'$folder/$3'" >"$folder/server.new"
		chmod +x "$folder/server.new"
		mv "$folder/server.new" "$folder/server"
	fi
	found "$folder/server"
}

variable=MYSQLLOCK_SERVER_$(printf '%s' "$name" | tr 'a-z.-' 'A-Z__')
if [ "$name" != galera ] && [ -n "${!variable:-}" ]; then
	is "${!variable}" "$name" || fail "$variable is ${!variable}, which is no program of $name."
	found "${!variable}"
fi
case $name in
mariadb-10.5) server "$name" bullseye mariadbd mariadb-server-core-10.5 ;;
mariadb-10.11) server "$name" bookworm mariadbd mariadb-server-core ;;
mariadb-11.8) server "$name" trixie mariadbd mariadb-server-core ;;
mysql-9) server "$name" sid mysqld mysql-server-core ;;
mysql-8.[04]) server "$name" '' ;;
galera) galera ;;
haproxy) tool haproxy bookworm usr/sbin/haproxy '' haproxy ;;
etcd) tool etcd bookworm usr/bin/etcd '' etcd-server ;;
mysql-router) tool mysql-router sid usr/bin/mysqlrouter 'usr/lib/mysql-router usr/lib/mysqlrouter/plugin' mysql-router ;;
*) fail "there is no server of the name $name (the first lines of this script have them all)." ;;
esac
