package mysqllock

import (
	"context"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// What a person can do about an error.

// Server error numbers that a person can act upon, or that this package reads. One that shows that
// a session is unfit belongs to isUnfit (session.go), too.
const (
	errRecordChanged       = 1020 // MariaDB: changed since the transaction's snapshot
	errTooManyConnections  = 1040
	errDatabaseDenied      = 1044
	errAccessDenied        = 1045
	errNoDatabaseSelected  = 1046
	errNotNull             = 1048
	errUnknownCommand      = 1047 // on Galera: this node is not part of the cluster
	errUnknownDatabase     = 1049
	errShutdown            = 1053
	errUnknownColumn       = 1054
	errDuplicateColumn     = 1060
	errDuplicateKey        = 1062
	errSyntax              = 1064
	errTableReadLocked     = 1099 // by LOCK TABLES ... READ
	errTableNotLocked      = 1100 // by LOCK TABLES, which locked others
	errUnknown             = 1105 // Vitess and TiDB: what has no number of MySQL's
	errTableDenied         = 1142
	errColumnDenied        = 1143
	errNoSuchTable         = 1146
	errTooManyUserConns    = 1203
	errLockWaitTimeout     = 1205 // also MariaDB's answer to a row that NOWAIT found locked
	errDeadlock            = 1213
	errReadLocked          = 1223 // by the session's own FLUSH TABLES WITH READ LOCK
	errUserLimit           = 1226
	errNotSupported        = 1235
	errUnknownStatement    = 1243 // a prepared statement that the server, or a proxy, has not, or no more
	errIllegalMix          = 1267 // a parameter in another character set than the column's
	errOptionPreventsWrite = 1290 // --read-only
	errInvalidString       = 1300
	errNoSavepoint         = 1305
	errInterrupted         = 1317 // KILL QUERY
	errXA                  = 1399 // the session is in an XA transaction
	errTableChanged        = 1412 // altered since the transaction's snapshot
	errNeedsReprepare      = 1615 // a table that goes on changing
	errBinlogFormat        = 1665 // STATEMENT, and the isolation level is READ COMMITTED or lower
	errReadOnlyTransaction = 1792
	errInternal            = 1815
	errMustChangePassword  = 1820 // said to statements
	errReadOnlyMode        = 1836
	errPasswordExpired     = 1862 // said to connections
	errConnectionKilled    = 1927 // MariaDB's
	errStatementTime       = 1969 // MariaDB's max_statement_time
	errExecutionTime       = 3024 // MySQL's max_execution_time
	errOffline             = 3032
	errRolledBack          = 3101 // Group Replication's certification
	errAccountLocked       = 3118 // MySQL's
	errTLSRequired         = 3159
	errSessionKilled       = 3169 // MySQL's
	errLockNowait          = 3572 // MySQL's answer to a row that NOWAIT found locked
	errCannotConvert       = 3854
	errIdleDisconnect      = 4031 // MySQL's, after wait_timeout
	errMariaDBAccountLock  = 4151
	errWriteConflict       = 9007 // TiDB: changed since the transaction's, or the statement's, snapshot
)

// advice says what became of the operation, if err leaves that open, and what a person can do about
// it; "" if there is nothing.
func advice(op string, err error, db *sql.DB) string {
	text := remedy(op, err, db)
	var open unansweredError
	switch {
	case !errors.As(err, &open):
		return text
	case text == "":
		return "the outcome is unknown"
	}
	return "the outcome is unknown; " + text
}

// remedy is what a person can do about err.
func remedy(op string, err error, db *sql.DB) string {
	if errors.Is(err, ErrNotLeader) {
		return "" // says enough
	}
	if isReadOnly(err) {
		return "this server is read-only, probably a replica or a demoted primary: connect to the primary"
	}
	if text := distributedRemedy(err); text != "" {
		return text
	}
	switch number(err) {
	case errNoSuchTable:
		return "run mysqllock.Migrate, or apply mysqllock.Schema, in the database that the connection or WithDatabase names"
	case errUnknownColumn:
		return "the tables lack a column, as those of an earlier version do: run mysqllock.Migrate, or the ALTER TABLE that mysqllock.Schema begins with"
	case errUnknownDatabase, errNoDatabaseSelected:
		return "create the database and name it in the DSN (MYSQL_DBNAME) or by WithDatabase"
	case errTableDenied, errColumnDenied, errDatabaseDenied:
		if op == "guard" || op == "transact" {
			return "the transaction's account needs SELECT and UPDATE on election_fences: GRANT them"
		}
		return "the lock needs SELECT, INSERT and UPDATE on election_records and election_fences: GRANT them (Migrate also needs CREATE, and to upgrade an old table ALTER, DELETE, DROP and LOCK TABLES)"
	case errAccessDenied:
		return "check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)"
	case errLockWaitTimeout, errDeadlock, errLockNowait:
		return "another session holds the row locked: if this lasts, look for an open transaction on election_records or election_fences"
	case errTooManyConnections, errTooManyUserConns:
		return "raise the server's or the user's connection limit, or make the pools smaller"
	case errUserLimit:
		return "the account has used up a limit of its own, which a lock's polls and renewals soon do: raise it or set it to 0 (ALTER USER ... WITH MAX_QUERIES_PER_HOUR 0 and its like)"
	case errMustChangePassword, errPasswordExpired:
		return "the account's password has expired: set a new one by ALTER USER, here too (MYSQL_PASSWORD), and let it never expire (PASSWORD EXPIRE NEVER)"
	case errAccountLocked, errMariaDBAccountLock:
		return "the account is locked: unlock it by ALTER USER ... ACCOUNT UNLOCK"
	case errTLSRequired:
		return "the server takes only connections with TLS: set MYSQL_TLS=true, or tls in the DSN"
	case errOffline:
		return "the server is in offline mode, and an administrator put it there: connect to another one, or set offline_mode to OFF"
	case errShutdown:
		return "the server is shutting down: connect to one that stays"
	case errConnectionKilled, errSessionKilled:
		return "somebody killed the session: find out who or what did, if this happens again"
	case errBinlogFormat:
		return "with binlog_format=STATEMENT the server refuses writes at READ COMMITTED: set binlog_format to ROW or MIXED, or the session's isolation level to REPEATABLE READ"
	case errTableReadLocked, errTableNotLocked:
		return "the session has LOCK TABLES: UNLOCK TABLES before it goes back to the pool, or give the lock a pool of its own"
	case errReadLocked:
		return "the session has FLUSH TABLES WITH READ LOCK: UNLOCK TABLES before it goes back to the pool, or give the lock a pool of its own"
	case errXA:
		return "the session is in an XA transaction: end that before it goes back to the pool, or give the lock a pool of its own"
	case errTableChanged:
		return "the table was altered or replaced since the transaction began, which has committed nothing: try the whole of it again"
	case errUnknownCommand:
		return "this node is not part of its cluster: connect to one that is"
	case errIllegalMix, errInvalidString, errCannotConvert:
		return "the session's character set can't carry the names: set charset=utf8mb4 in the DSN"
	case errWriteConflict:
		return "a row was changed since the transaction began, which has committed nothing: try the whole of it again"
	case errNotSupported:
		return "the server lacks something that the lock needs; a setting that makes it ignore that, as tidb_enable_noop_functions does, would leave leaders unfenced"
	case errSyntax:
		return "the lock needs MySQL 8.0 or MariaDB 10.3, or newer"
	}
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "renew the server's certificate, or set this machine's clock"
	case errors.As(err, &authority):
		return "name the authority that signed the server's certificate in the TLS configuration (MYSQL_TLS_CA)"
	case errors.As(err, &hostname):
		return "name the server as its certificate does (MYSQL_TLS_SERVER_NAME)"
	case errors.Is(err, context.DeadlineExceeded) && db != nil:
		s := db.Stats()
		return fmt.Sprintf("the pool has %d connections open (limit %d, 0 is none), %d in use, and was waited for %d times",
			s.OpenConnections, s.MaxOpenConnections, s.InUse, s.WaitCount)
	case errors.Is(err, sql.ErrNoRows):
		return "the session returns no rows at all: remove sql_select_limit=0 from the DSN, the server's configuration or init_connect"
	case errors.Is(err, driver.ErrBadConn):
		return "the connection broke again and again, or the server is read-only: check that it runs and is the primary"
	}
	return ""
}

// distributedRemedy is for errors of vtgate, which has numbers of its own in the text.
func distributedRemedy(err error) string {
	var e *mysql.MySQLError
	if !errors.As(err, &e) {
		return ""
	}
	switch text := strings.ToLower(e.Message); {
	case strings.Contains(text, "multi-db transaction attempted"):
		return "a guarded transaction keeps to the shard that has the election's rows, as shards commit one after the other: touch rows of that shard only, or compare FencingToken with a column"
	case strings.Contains(text, "schema tracking"):
		return "let vtgate track the schema (--schema-change-signal, which is its default), or give the VSchema the tables' columns with \"column_list_authoritative\": true"
	case e.Number == errUnknown && strings.Contains(text, "vttablet") && strings.Contains(text, "syntax error"):
		return "vtgate does not know the tables' columns: right after they were made that passes within seconds; else let it track the schema (--schema-change-signal, which is its default)"
	case e.Number == errUnknown && vitessNumber.MatchString(e.Message):
		return "Vitess's list of query serving errors explains the number that begins with VT"
	}
	return ""
}

var vitessNumber = regexp.MustCompile(`\bVT\d{5}\b`)

// number is the server's number of err, 0 if it is none of the server's.
func number(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// wasInterrupted reports whether the statement waited, or worked, until somebody or some limit
// ended that.
func wasInterrupted(err error) bool {
	switch number(err) {
	case errLockWaitTimeout, errInterrupted, errStatementTime, errExecutionTime:
		return true
	}
	return false
}

// isReadOnly reports whether the server, or the session, took no writes.
func isReadOnly(err error) bool {
	switch number(err) {
	case errOptionPreventsWrite, errReadOnlyTransaction, errReadOnlyMode:
		return true
	}
	return false
}

// hasChanged reports whether the server did nothing, as a row had changed since the snapshot that it
// went by.
func hasChanged(err error) bool {
	n := number(err)
	return n == errRecordChanged || n == errWriteConflict
}

// isBusy reports whether NOWAIT found the row locked by another session.
func isBusy(err error) bool {
	n := number(err)
	return n == errLockNowait || n == errLockWaitTimeout
}

// mayBeUnknownStatement reports whether err is one that servers have for statements which they don't
// know.
func mayBeUnknownStatement(err error) bool {
	switch number(err) {
	case errSyntax, errUnknownColumn, errUnknown, errNotSupported, errInternal:
		return true
	}
	return false
}
