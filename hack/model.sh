#!/usr/bin/env bash
# Checks the model in hack/model with Spin: that nothing goes wrong as it is, and that something does where a rule is
# left out. hack/model/README.md says how to read it.
#
#	hack/model.sh          the rules without pauses, and a counterexample for each rule (a minute)
#	hack/model.sh full     with pauses, too (ten minutes, 6 GB of memory)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Spin itself runs gcc, for its preprocessor, and writes a program in C.
compiles() { have gcc && printf '#include <stdio.h>\nint main(void) { return 0; }\n' | gcc -x c -o /dev/null - >/dev/null 2>&1; }

if ! have spin || ! compiles; then
	say "the model checker Spin, or the C compiler gcc, which it needs, is not installed"
	case $(package_manager) in
	apt-get) install_packages spin gcc libc6-dev || true ;;
	brew) install_packages spin || true ;;
	dnf | zypper) install_packages gcc glibc-devel || true ;;
	apk) install_packages gcc musl-dev || true ;;
	pacman) install_packages gcc || true ;;
	esac
	hash -r
	have spin || fail "there is no program spin." "Install it (Debian, Ubuntu: spin; macOS: brew install spin), or compile it from https://spinroot.com"
	compiles || fail "there is no gcc that can compile a C program of one line." \
		"Install a C compiler with its library's headers (Debian, Ubuntu: gcc libc6-dev; macOS: xcode-select --install)"
fi

model=$root/hack/model/election.pml
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# search DEFINITION... looks through all states, and prints what it found.
search() {
	local folder definition
	for definition; do
		grep -qwE "^#if(def|ndef)? (.*[^A-Z_])?${definition#-D}" "$model" || {
			printf 'the model asks nowhere for %s, so that %s would change nothing\n' "${definition#-D}" "$definition" >&2
			return 1
		}
	done
	folder=$(mktemp -d "$temporary/XXXXXX")
	(cd "$folder" && spin -a "$@" "$model" >/dev/null && gcc -w -O2 -DSAFETY -DCOLLAPSE -DMEMLIM=12000 -o pan pan.c && ./pan -m30000000) >"$folder/report" 2>&1 || true
	if ! grep -q 'errors: ' "$folder/report"; then
		cat "$folder/report" >&2
		return 1
	fi
	grep -E 'max search depth|out of memory|assertion violated' "$folder/report" || true
	grep -oE 'errors: [0-9]+' "$folder/report"
	grep -oE '[0-9.e+]+ states, stored' "$folder/report"
}

# holds DEFINITION... expects that nothing goes wrong, and that every state was seen.
holds() {
	local found
	found=$(search "$@") || return
	say "$(printf '%s' "$found" | tr '\n' ' ')"
	[ "$(printf '%s\n' "$found" | head -1)" = 'errors: 0' ]
}

# breaks DEFINITION... expects a counterexample.
breaks() {
	local found
	found=$(search "$@") || return
	say "$(printf '%s' "$found" | tr '\n' ' ')"
	case $found in *'assertion violated'*) ;; *) return 1 ;; esac
}

step "all rules, nobody stands still: at most one leader" holds
step "without deadlines of operations: two leaders" breaks -DNO_DEADLINE
step "without the clock that tells a late answer, with pauses: two leaders" breaks -DNO_LATE -DPAUSES
step "without looking whose release it is, with pauses: two leaders" breaks -DNO_OWNER -DPAUSES
step "a release after RenewDeadline: two leaders" breaks -DRELEASE_LATE
step "without the guard, with pauses: a stale commit" breaks -DNO_GUARD -DPAUSES
if [ "${1:-}" = full ]; then
	step "all rules, with pauses: no stale commit, at most one leader that did not stand still" holds -DPAUSES
fi
summary
