# shellcheck shell=bash
# What demo.sh, test.sh and verify.sh share: messages, the list of modules, and the set-up of what they need. To be
# sourced by bash, 3.2 (macOS) or newer.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

# Whatever workspace the caller is in, this repository's own go.mod files count. And Go need not ask git for a version
# to stamp into programs that nobody keeps: git may be missing, or distrust a checkout that somebody else owns.
export GOWORK=off

say() { printf '==> %s\n' "$*"; }

fail() {
	printf '%s: %s\n' "${0##*/}" "$1" >&2
	shift
	if [ $# -gt 0 ]; then printf '    %s\n' "$@" >&2; fi
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# modules prints the folder of each Go module, the root first.
modules() {
	find . -maxdepth 3 -name go.mod -not -path './.*/*' | sed 's|/go\.mod$||' | sort
}

# --- steps, of which all run and the failed ones are named at the end ---

step_results=()
steps_failed=0

# step NAME COMMAND... runs the command and notes how it ended and how long it took. In a function that is run so, bash
# ignores "set -e": join its commands with && or ||.
step() {
	local name=$1 began=$SECONDS outcome=ok
	shift
	say "$name"
	if ! "$@"; then
		outcome=FAILED
		steps_failed=$((steps_failed + 1))
		printf '==> FAILED: %s\n' "$name" >&2
	fi
	step_results+=("$(printf '%-6s %5d s  %s' "$outcome" $((SECONDS - began)) "$name")")
}

# summary prints all steps and ends the script.
summary() {
	printf '\n'
	say "${0##*/} after $SECONDS s:"
	printf '    %s\n' "${step_results[@]}"
	if [ "$steps_failed" -gt 0 ]; then
		printf '%s: %d of %d steps failed\n' "${0##*/}" "$steps_failed" "${#step_results[@]}" >&2
		exit 1
	fi
	exit 0
}

# --- Go ---

# version_number prints 1.26.3 as 1026003; nothing for what is no release (a development version).
version_number() {
	printf '%s\n' "$1" | sed -nE 's/^(go)?([0-9]+)\.([0-9]+)(\.([0-9]+))?.*/\2 \3 \5/p' | awk '{ printf "%d%03d%03d", $1, $2, $3 }'
}

# need_go makes sure that go is there and new enough for every module.
need_go() {
	local dir wanted number newest=0 newest_text='' running place
	for dir in $(modules); do
		wanted=$(awk '$1 == "go" { print $2; exit }' "$dir/go.mod")
		number=$(version_number "$wanted")
		if [ "$number" -gt "$newest" ]; then newest=$number newest_text=$wanted; fi
	done
	if ! have go; then
		for place in /usr/local/go/bin /usr/lib/go/bin /opt/homebrew/bin "${HOME:-/nowhere}/go/bin"; do
			if [ -x "$place/go" ]; then
				say "go is not in PATH; using $place/go"
				PATH=$place:$PATH
				break
			fi
		done
	fi
	if ! have go; then
		fail "the program go is not in PATH, and everything here is compiled by it. Go $newest_text or newer is needed." \
			"Get it from https://go.dev/dl/ (on macOS also by: brew install go) and run this again."
	fi
	# Asked inside the most demanding module, where a go that may do so switches to a newer toolchain by itself.
	running=$(cd examples && go env GOVERSION) ||
		fail "the go in PATH ($(command -v go)) can't be used here, as it says above." "Go $newest_text or newer is needed: https://go.dev/dl/"
	number=$(version_number "$running")
	if [ -n "$number" ] && [ "$number" -lt "$newest" ]; then
		fail "the go in PATH ($(command -v go)) is $running, but the newest client-go, which the examples use, needs Go $newest_text or newer." \
			"Get it from https://go.dev/dl/, or let go fetch it by itself: export GOTOOLCHAIN=auto"
	fi
	GOFLAGS="$(go env GOFLAGS) -buildvcs=false"
	export GOFLAGS
}

# --- the system's package manager ---

# as_root runs a command with the rights to install packages.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif [ -t 0 ]; then
		sudo "$@"
	else
		sudo -n "$@" # there is nobody to type a password
	fi
}

# package_manager prints the name of the one to use.
package_manager() {
	local candidates='apt-get dnf zypper apk pacman brew' name
	if [ "$(uname -s)" = Darwin ]; then candidates=brew; fi
	for name in $candidates; do
		if have "$name"; then
			printf '%s\n' "$name"
			return
		fi
	done
}

# install_packages PACKAGE... asks that package manager for packages that have the names it knows them by.
install_packages() {
	local manager
	manager=$(package_manager)
	say "asks $manager to install: $*"
	if [ "$manager" = brew ] && [ "$(id -u)" = 0 ]; then
		printf 'Homebrew refuses to run as root: run this script as yourself\n' >&2
		return 1
	fi
	if [ "$manager" != brew ] && [ "$(id -u)" != 0 ] && ! have sudo; then
		printf 'only root may do that, and sudo is not installed: run this script as root, or have root install it\n' >&2
		return 1
	fi
	case $manager in
	apt-get)
		# Without the first, apt may look for versions that are gone. It fails if only one of many sources does.
		as_root apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
		;;
	dnf) as_root dnf install -y "$@" ;;
	zypper) as_root zypper --non-interactive install "$@" ;;
	apk) as_root apk add "$@" ;;
	pacman) as_root pacman -S --needed --noconfirm "$@" ;;
	brew) brew install "$@" ;;
	esac
}

# need_program PROGRAM WHY PACKAGE makes sure that a program is there, which every package manager has by one name.
need_program() {
	if have "$1"; then return; fi
	say "the program $1 is not installed; $2"
	if [ -n "$(package_manager)" ]; then install_packages "$3" || true; fi
	hash -r
	have "$1" || fail "there is no program $1; $2." "Install it (the package $3), and run this again."
}

# --- a database server ---

# find_servers prints the paths of all server programs, in the order in which the package mysqltest searches.
find_servers() {
	local name place
	for name in mariadbd mysqld; do
		if have "$name"; then command -v "$name"; fi
		for place in /usr/sbin /usr/local/sbin /usr/libexec /usr/local/libexec /usr/bin /usr/local/bin \
			/usr/local/mysql/bin /opt/homebrew/bin /opt/homebrew/opt/mariadb*/bin /opt/homebrew/opt/mysql*/bin \
			/usr/local/opt/mariadb*/bin /usr/local/opt/mysql*/bin /home/linuxbrew/.linuxbrew/bin; do
			if [ -x "$place/$name" ]; then printf '%s\n' "$place/$name"; fi
		done
	done
}

# find_server prints the first of them.
find_server() { find_servers | sed -n 1p; }

# need_server WHY INSTEAD makes sure that there is a server program, and exports its path as MYSQLLOCK_TEST_SERVER.
# WHY says what it is for, INSTEAD what else would do.
need_server() {
	local why=$1 instead=$2 server=${MYSQLLOCK_TEST_SERVER:-} manager
	if [ -n "$server" ]; then
		have "$server" || fail "MYSQLLOCK_TEST_SERVER is $server, which is no program that can be run." \
			"Set it to the path of a mariadbd or mysqld, or unset it, and one is searched for."
		say "the database server is $server (MYSQLLOCK_TEST_SERVER)"
		return
	fi
	server=$(find_server)
	if [ -z "$server" ]; then
		manager=$(package_manager)
		say "no MariaDB or MySQL server program is installed; $why"
		case $manager in
		apt-get)
			# The server program and its own files are all that is needed. mariadb-server would also set up a service
			# that starts at once and with every boot, and an administrator's account. In older releases the small
			# package has a version in its name; there the large one has to do.
			install_packages mariadb-server-core || install_packages mariadb-server || true
			;;
		dnf) install_packages mariadb-server || true ;; # the service is not started
		zypper | apk | pacman | brew) install_packages mariadb || true ;;
		esac
		hash -r
		server=$(find_server)
	fi
	if [ -z "$server" ]; then
		fail "there is no MariaDB or MySQL server program${manager:+, and $manager did not bring one (the messages above say why)}." \
			"Do one of these and run this again:" \
			"- install MariaDB or MySQL (Debian, Ubuntu: mariadb-server-core; Fedora, RHEL: mariadb-server; macOS: brew install mariadb)" \
			"- set MYSQLLOCK_TEST_SERVER to the path of a mariadbd or mysqld that PATH and the usual folders don't have" \
			"- $instead"
	fi
	say "the database server is $server"
	export MYSQLLOCK_TEST_SERVER=$server
}

# --- a C compiler, for the race detector ---

compiles_c() {
	printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | "$(go env CC)" -x c -o /dev/null - >/dev/null 2>&1
}

# need_race makes sure that "go test -race" works.
need_race() {
	if [ "$(uname -s)" = Darwin ]; then return; fi # Go's race detector needs no C compiler there
	export CGO_ENABLED=1
	if compiles_c; then return; fi
	say "no working C compiler ($(go env CC)); Go's race detector, under which the tests run, is linked by one"
	case $(package_manager) in
	apt-get) install_packages gcc libc6-dev || true ;;
	dnf) install_packages gcc glibc-devel || true ;;
	zypper) install_packages gcc glibc-devel || true ;;
	apk) install_packages gcc musl-dev || true ;;
	pacman) install_packages gcc || true ;;
	esac
	hash -r
	compiles_c || fail "\"$(go env CC)\" still can't compile a C program of one line." \
		"Install a C compiler with its library's headers (Debian, Ubuntu: gcc libc6-dev), or set CC to one."
}

# --- the other end of the supported versions of client-go ---

# newest_client_go FOLDER makes FOLDER/go.mod, a copy of the root module's that requires the client-go of the examples,
# for go's -modfile. The repository's own files stay as they are.
newest_client_go() {
	local folder=$1 version messages
	version=$(cd examples && go list -m -f '{{.Version}}' k8s.io/client-go) &&
		cp go.mod go.sum "$folder/" || return
	# tidy, as go.sum lacks what the tests of the new versions need. Of what both say only a failure is of interest.
	messages=$(go get -modfile="$folder/go.mod" "k8s.io/api@$version" "k8s.io/apimachinery@$version" "k8s.io/client-go@$version" 2>&1 &&
		go mod tidy -modfile="$folder/go.mod" 2>&1) || {
		printf '%s\n' "$messages" >&2
		return 1
	}
	say "the root module with client-go $(go list -modfile="$folder/go.mod" -m -f '{{.Version}}' k8s.io/client-go), as required by examples/go.mod"
}
