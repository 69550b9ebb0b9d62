#!/usr/bin/env bash
# Prints the section of CHANGELOG.md of a version, for the notes of its release; fails if there is none.
#
#	hack/notes.sh v1.2.3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?the version, such as v1.2.3}
notes=$(awk -v heading="## [${version#v}]" '
	index($0, "## [") == 1 { inside = index($0, heading) == 1; next }
	inside
' CHANGELOG.md)
if [ -z "${notes//[[:space:]]/}" ]; then
	printf '%s: CHANGELOG.md has no section "## [%s] - DATE", or nothing in it\n' "${0##*/}" "${version#v}" >&2
	exit 1
fi
printf '%s\n' "$notes" | sed '/./,$!d'
