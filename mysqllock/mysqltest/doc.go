// Package mysqltest starts a throwaway MariaDB or MySQL server for tests and demonstrations: a real one, as what matters
// in an election (isolation, lock waits, lost replies) is what a fake would get wrong.
//
//	server, err := mysqltest.Start(ctx, mysqltest.Options{})
//	if err != nil { ... }
//	defer server.Close()
//	name, err := server.CreateDatabase(ctx)
//	config := server.Config()
//	config.DBName = name
//
// The server listens on 127.0.0.1, on a port below the ephemeral range, has a temporary directory of its own, reads no
// option file, and knows one account with a random password; there is no root. It needs no privileges; as root it runs
// as root, so that it can use a temporary directory that only root may enter. Options that decide what SQL does
// (isolation, sql_mode, character set, autocommit) are the server's own defaults.
//
// Nothing is left behind, even when the test is killed: a second process, a few lines of sh, waits for the end of a pipe
// that only the test holds, and then kills the server and deletes its directory. No goroutine outlives a call, so a
// running server does not disturb goleak.
//
// The package kills only processes that it started, by their ids, never by name; it never installs anything, and it
// never touches a server that was there before, except to create and drop databases on the one that MYSQLLOCK_TEST_DSN
// names.
//
// A [Proxy] is the network before a server, to be broken: it holds back, delays, cuts, refuses. A [Meter] counts the
// statements, round trips and bytes of a client's connections.
//
// # Environment
//
//   - MYSQLLOCK_TEST_SERVER: the server program to start, see [Options].
//   - MYSQLLOCK_TEST_DSN: an existing server, for [Shared] only: a DSN of github.com/go-sql-driver/mysql for an account
//     that may create databases and accounts, for example "root:secret@tcp(127.0.0.1:3306)/".
//
// # Wrapper scripts
//
// The server program may be a script, for a server that is unpacked and not installed. It must exec the server, so that
// the process started is the server, and must pass "$@" first and options of its own last: --no-defaults, which is
// first in "$@", is obeyed only there, and where an option is given twice the last one counts.
//
//	#!/bin/sh
//	exec /opt/unpacked/usr/sbin/mariadbd "$@" --basedir=/opt/unpacked/usr --lc-messages-dir=/opt/unpacked/usr/share/mysql
//
// It must answer "--no-defaults --version" and, for MariaDB, "--no-defaults --verbose --help", from which the folder
// with MariaDB's system table scripts is read (lc-messages-dir, character-sets-dir or basedir).
package mysqltest
