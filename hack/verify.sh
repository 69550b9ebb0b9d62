#!/usr/bin/env bash
# Checks what needs no database: format, go.mod files, linter, scripts, documents, and that the library compiles with the
# oldest and the newest client-go that it is for.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

linter_version=v2.15.0
govulncheck_version=v1.9.0

need_go

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

formatted() {
	local files
	files=$(gofmt -l .) || return
	if [ -n "$files" ]; then
		printf 'not as gofmt would have it (run: gofmt -w .):\n%s\n' "$files" >&2
		return 1
	fi
}

tidy() {
	(cd "$1" && go mod tidy -diff) || {
		printf 'run: (cd %s && go mod tidy)\n' "$1" >&2
		return 1
	}
}

scripts() {
	local failed=0 script
	local all=(.ci/run hack/*.sh hack/servers/*.sh hack/servers/wsrep_sst_mysqllock)
	for script in "${all[@]}"; do
		bash -n "$script" || failed=1
		if [ "$script" != hack/lib.sh ] && [ ! -x "$script" ]; then
			printf '%s lacks its run bit (run: git add --chmod=+x %s)\n' "$script" "$script" >&2
			failed=1
		fi
	done
	if have shellcheck; then
		shellcheck -x -P hack -S warning "${all[@]}" || failed=1
	else
		say "shellcheck is not installed; bash -n has to do"
	fi
	return "$failed"
}

# documents checks what every Markdown file says: links, code, commands, names.
documents() { (cd hack && go test -count=1 ./docs); }

# direct_dependencies compares what the library's own packages import, and what go.mod requires besides for its command
# and for tests, with what .github/CONTRIBUTING.md promises.
direct_dependencies() {
	local promised command tests imported required main
	promised='github.com/go-sql-driver/mysql k8s.io/api k8s.io/apimachinery k8s.io/client-go k8s.io/klog/v2'
	command=golang.org/x/term
	tests='github.com/anishathalye/porcupine github.com/google/go-cmp go.uber.org/goleak pgregory.net/rapid'
	main=$(go list -m) || return
	# shellcheck disable=SC2046 # package paths have no spaces
	imported=$(go list -f '{{with .Module}}{{.Path}}{{end}}' $(go list -f '{{join .Imports "\n"}}' $(go list ./... | grep -v /cmd/) | sort -u) | grep -vx "$main" | sort -u | xargs) || return
	if [ "$imported" != "$promised" ]; then
		printf 'whoever imports the library is promised these modules and no others:\n  %s\nits packages import:\n  %s\n' "$promised" "$imported" >&2
		return 1
	fi
	required=$(go list -m -f '{{if not (or .Main .Indirect)}}{{.Path}}{{end}}' all | sort -u | xargs) || return
	for module in $required; do
		case " $promised $command $tests " in
		*" $module "*) ;;
		*)
			printf 'go.mod requires %s, which is neither one of the promised modules nor one that the command or the tests may use (%s)\n' "$module" "$command $tests" >&2
			return 1
			;;
		esac
	done
}

# linter prints the path of the linter, which it compiles if need be: one file in the cache, nothing in PATH.
linter() {
	local folder
	folder=$(dirname "$(go env GOCACHE)")/go-leaderelection-mysql/golangci-lint-$linter_version-$(go env GOVERSION)
	if [ ! -x "$folder/golangci-lint" ]; then
		say "compiles golangci-lint $linter_version, once (about three minutes on two cores)" >&2
		GOBIN=$folder go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$linter_version" >&2 || return
	fi
	printf '%s\n' "$folder/golangci-lint"
}

lint() {
	local program
	program=$(linter) || return
	(cd "$1" && "$program" run --allow-parallel-runners --config "$root/.golangci.yml" --timeout 15m ./...)
}

# vulnerabilities looks for known ones in what is called.
vulnerabilities() { (cd "$1" && go run "golang.org/x/vuln/cmd/govulncheck@$govulncheck_version" ./...); }

# The database of known vulnerabilities is on the internet; CI machines may be without.
reaches_vulnerabilities() {
	if ! have curl; then
		say "curl is not installed, so that it is not known whether https://vuln.go.dev can be reached: govulncheck is left out"
		return 1
	fi
	curl -fsS --max-time 10 -o /dev/null https://vuln.go.dev/index/db.json 2>/dev/null && return
	say "https://vuln.go.dev can't be reached: govulncheck is left out"
	return 1
}

compiles() { go build "$@" ./... && go vet "$@" ./...; }

compiles_with_newest() { newest_client_go "$temporary" && compiles -modfile="$temporary/go.mod"; }

step "gofmt" formatted
for dir in $(modules); do step "go mod tidy in $dir" tidy "$dir"; done
step "scripts" scripts
step "documents" documents
step "direct dependencies of the library" direct_dependencies
step "go build and go vet with the lowest client-go ($(go list -m -f '{{.Version}}' k8s.io/client-go))" compiles
step "go build and go vet with the newest client-go ($(cd examples && go list -m -f '{{.Version}}' k8s.io/client-go))" compiles_with_newest
for dir in $(modules); do step "golangci-lint in $dir" lint "$dir"; done
if reaches_vulnerabilities; then
	for dir in $(modules); do step "govulncheck in $dir" vulnerabilities "$dir"; done
fi
summary
