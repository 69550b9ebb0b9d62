package mysqllock

import (
	"context"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"unicode"

	"github.com/go-sql-driver/mysql"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	// ErrNotLeader says that this Lock does not hold its election, or no
	// longer: whatever was to be done in the leader's name must not be done.
	ErrNotLeader = errors.New("not the leader")

	// ErrDuplicateIdentity says that another Lock holds the election under the
	// same identity. client-go compares identities as strings, so that two
	// processes with one identity would both lead; give each process an
	// identity of its own, as NewIdentity does.
	ErrDuplicateIdentity = errors.New("another candidate uses the same identity")

	// ErrOutcomeUnknown says that Transact sent its COMMIT and got no answer:
	// the transaction is committed as a whole or not at all, and only reading
	// what it wrote can tell which. If it is committed, it was so within the
	// term that it was guarded with.
	ErrOutcomeUnknown = errors.New("the commit was sent, but its outcome is unknown")
)

// electionRecords is what Kubernetes' error types call the resource.
var electionRecords = schema.GroupResource{Resource: "election_records"}

// opError is the form of every error that leaves this package:
//
//	mysqllock: <operation> <election>: <cause>[; <what to do>]
//
// The cause stays reachable by errors.As and errors.Is, down to
// *mysql.MySQLError; the text shows no password, DSN or host of the database.
type opError struct {
	op, election string
	cause        error
	advice       string
}

func (e *opError) Error() string {
	s := "mysqllock: " + e.op
	if e.election != "" {
		s += fmt.Sprintf(" %q", e.election)
	}
	s += ": " + oneLine(publicText(e.cause))
	if e.advice != "" {
		s += "; " + e.advice
	}
	return s
}

func (e *opError) Unwrap() error { return e.cause }

// oneLine is a text that a log can show: a server's message may be in another
// character set, and quote what a client sent.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r // U+FFFD for what is not UTF-8
	}, text)
}

// wrap gives err the package's form, with advice where a person can act. An
// error that has the form already is returned as it is.
func wrap(op, election string, err error, db *sql.DB) error {
	var done *opError
	if err == nil || errors.As(err, &done) {
		return err
	}
	return &opError{op: op, election: election, cause: err, advice: advice(op, err, db)}
}

// Server error numbers that a person can act upon, or that this package reads.
const (
	errRecordChanged          = 1020 // MariaDB: changed since the transaction's snapshot
	errTooManyConnections     = 1040
	errDatabaseDenied         = 1044
	errAccessDenied           = 1045
	errNoDatabaseSelected     = 1046
	errUnknownCommand         = 1047 // on Galera: this node is not part of the cluster
	errUnknownDatabase        = 1049
	errServerShutdown         = 1053
	errUnknownColumn          = 1054
	errDuplicateKey           = 1062
	errSyntax                 = 1064
	errTableNotLockedForWrite = 1099 // LOCK TABLES of the session's own
	errTableNotLocked         = 1100
	errTableDenied            = 1142
	errColumnDenied           = 1143
	errNoSuchTable            = 1146
	errTooManyUserConns       = 1203
	errLockWaitTimeout        = 1205 // also MariaDB's answer to a row that NOWAIT found locked
	errDeadlock               = 1213
	errReadLock               = 1223 // FLUSH TABLES WITH READ LOCK of the session's own
	errUnknownStatement       = 1243 // a prepared statement that the server, or a proxy, has not, or no more
	errIllegalMix             = 1267 // a parameter in another character set than the column's
	errOptionPreventsWrite    = 1290 // --read-only
	errInvalidString          = 1300
	errNoSavepoint            = 1305
	errInterrupted            = 1317 // KILL QUERY
	errXATransaction          = 1399 // the session is in an XA transaction
	errNeedsReprepare         = 1615 // a table that goes on changing
	errReadOnlyTransaction    = 1792
	errReadOnlyMode           = 1836
	errConnectionKilled       = 1927 // MariaDB
	errStatementTime          = 1969 // MariaDB's max_statement_time
	errExecutionTime          = 3024 // MySQL's max_execution_time
	errOfflineMode            = 3032
	errRolledBack             = 3101 // Group Replication's certification
	errSessionKilled          = 3169 // MySQL
	errLockNowait             = 3572 // MySQL's answer to a row that NOWAIT found locked
	errCannotConvert          = 3854
	errIdleDisconnect         = 4031 // MySQL: after wait_timeout
)

// advice tells what a person can do about err; empty where there is nothing.
func advice(op string, err error, db *sql.DB) string {
	switch number(err) {
	case errNoSuchTable, errUnknownColumn:
		return "run mysqllock.Migrate, or apply mysqllock.Schema, in the database that the connection or WithDatabase names"
	case errUnknownDatabase, errNoDatabaseSelected:
		return "create the database and name it in the DSN (MYSQL_DBNAME) or by WithDatabase"
	case errTableDenied, errColumnDenied, errDatabaseDenied:
		if op == "guard" || op == "transact" {
			return "the transaction's account needs SELECT and UPDATE on election_fences: GRANT them"
		}
		return "the lock needs SELECT, INSERT and UPDATE on election_records and election_fences: GRANT them (Migrate also needs CREATE, and to upgrade an old table ALTER, DELETE, DROP and LOCK TABLES)"
	case errAccessDenied:
		return "check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)"
	case errOptionPreventsWrite, errReadOnlyTransaction, errReadOnlyMode:
		return "this server is read-only, probably a replica or a demoted primary: connect to the primary"
	case errLockWaitTimeout, errDeadlock, errLockNowait:
		return "another session holds the row locked: if this lasts, look for an open transaction on election_records or election_fences"
	case errTooManyConnections, errTooManyUserConns:
		return "raise the server's or the user's connection limit, or make the pools smaller"
	case errUnknownCommand:
		return "this node is not part of its cluster: connect to one that is"
	case errIllegalMix, errInvalidString, errCannotConvert:
		return "the session's character set can't carry the names: set charset=utf8mb4 in the DSN"
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
		pool := fmt.Sprintf("the pool has %d connections open (limit %d, 0 is none), %d in use, and was waited for %d times",
			s.OpenConnections, s.MaxOpenConnections, s.InUse, s.WaitCount)
		if op == "transact" {
			return pool // ErrOutcomeUnknown says it where it is so
		}
		return "the outcome is unknown; " + pool
	case errors.Is(err, driver.ErrBadConn):
		return "the connection broke again and again, or the server is read-only: check that it runs and is the primary"
	}
	return ""
}

// number is the server's number of err, 0 if it is none of the server's.
func number(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// wasInterrupted tells whether the statement waited, or worked, until somebody
// or some limit ended that.
func wasInterrupted(err error) bool {
	switch number(err) {
	case errLockWaitTimeout, errInterrupted, errStatementTime, errExecutionTime:
		return true
	}
	return false
}

// isBusy tells whether NOWAIT found the row locked by another session.
func isBusy(err error) bool {
	n := number(err)
	return n == errLockNowait || n == errLockWaitTimeout
}

var (
	// accountHost is the client's address in "Access denied for user 'a'@'10.0.0.7'".
	accountHost = regexp.MustCompile(`(@|\bHost )'[^']*'`)
	// address finds what looks like host:port, an IP address or a DSN's address
	// in the text of an error whose type is not known.
	address = regexp.MustCompile(`\S*@(?:tcp|unix)\([^)]*\)\S*|\[[0-9a-fA-F:.%]+\](?::\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\b[A-Za-z0-9_](?:[A-Za-z0-9_-]*\.)*[A-Za-z0-9_-]*:\d{2,5}\b`)
)

// publicText is err's text without the database's host, an account's host or
// anything else of a DSN: errors end up in logs that more people read than may
// know where the database is.
func publicText(err error) string {
	text := err.Error()
	var (
		status   apierrors.APIStatus
		server   *mysql.MySQLError
		op       *net.OpError
		dns      *net.DNSError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &status):
		return text // this package's own words
	case errors.As(err, &server):
		return accountHost.ReplaceAllString(text, "${1}'...'")
	case errors.As(err, &dns):
		return "looking up the server's address: " + address.ReplaceAllString(dns.Err, "...")
	case errors.As(err, &op):
		text = strings.ReplaceAll(text, op.Error(), op.Op+": "+publicText(op.Err))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return text // it has times, which look like addresses, and none of those
	case errors.As(err, &hostname):
		text = strings.ReplaceAll(text, hostname.Error(), "the server's certificate is not for the host name that was dialled")
	}
	return address.ReplaceAllString(text, "...")
}

func notFound(election string) error {
	return apierrors.NewNotFound(electionRecords, election)
}

func alreadyExists(election string) error {
	return apierrors.NewAlreadyExists(electionRecords, election)
}

func conflict(election, why string) error {
	return apierrors.NewConflict(electionRecords, election, errors.New(why))
}
