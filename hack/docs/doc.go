// Package docs checks what every Markdown file of this repository says against the repository: where its links lead,
// whether its Go compiles, whether the scripts, flags, tests and names that it mentions exist. Its tests need no server
// and no network. The SQL is run by a test of package mysqllock.
//
//	cd hack && go test ./docs
package docs
