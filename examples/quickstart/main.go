// Command quickstart shows an election on MySQL or MariaDB: three processes compete for one leadership, the leader is
// asked to stop, killed, has its database taken away and is paused beyond its lease, and at no moment do two lead.
//
//	go run ./quickstart                          the whole demonstration
//	go run ./quickstart candidate -id NAME       one candidate; candidate.go is the file to copy
//
// The demonstration uses the database of MYSQL_USER, MYSQL_PASSWORD, MYSQL_HOST, MYSQL_PORT and MYSQL_DBNAME if they
// are set, also in a file .env in the current directory; else it starts a throwaway server. A candidate needs them.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "candidate" {
		endWithStage()
		err = runCandidate(os.Args[2:])
	} else {
		err = runStage(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
	}
	switch {
	case errors.Is(err, errInterrupted):
		os.Exit(130) // as a shell reports a program that Ctrl-C ended
	case err != nil:
		os.Exit(1)
	}
}
