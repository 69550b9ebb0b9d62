package mysqllock

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/klog/v2"
)

// The pool that is made for locks.

// The pool's limits. A lock has one operation under way, so that ten connections serve several
// elections, with some guards and a Migrate besides, and a server with a hundred candidates still
// has connections left.
const (
	maxOpenConns = 10
	// maxIdleConns is more than the default of 2, so that several elections don't make a connection
	// for each renewal.
	maxIdleConns = 4
	// connMaxLifetime lets the pool follow a DNS name, a load balancer or a proxy to another
	// server. It is the limit for idle connections, too: they are closed without a successor, as
	// most firewalls forget a connection that was silent for longer, and no retry period comes near
	// to it.
	connMaxLifetime = 3 * time.Minute
	// successorPause is between attempts to replace an old connection, so that they don't add to
	// the server's shortage of connections.
	successorPause = 10 * time.Second
	// connectTimeout is for a config without a Timeout.
	connectTimeout = 5 * time.Second
)

// lockWait is how long, in seconds, a statement waits for a row or a table at the server. Less than
// the 1.5 s after which a lock with client-go's timings gives the statement up: an abandoned one
// would go on waiting, for 50 s by default and up to a year for a table, and each retry would leave
// one more.
const lockWait = "1"

// Open makes a small pool for locks from a config, which may come from ConfigFromEnv,
// mysql.ParseDSN or, filled in by hand, mysql.NewConfig. It does no I/O: the first operation
// connects. The config is copied, not changed. The pool is the caller's; close it when the last
// elector has returned.
//
// The pool is for elections. An application that keeps transactions open, or runs many queries at
// once, does so in a pool of its own, or a renewal has to wait for a connection until its deadline
// is over and the lease is lost.
//
// Whatever the config says, these hold:
//
//   - InterpolateParams: a statement is one round trip. Otherwise the driver prepares it first,
//     which is another, and a renewal has 1.5 s for all. Only polls and renewals are prepared, once
//     by each connection, which spares the server their text every few seconds. They are sent as
//     text where a proxy, or max_prepared_stmt_count, refuses that. In a pool of your own nothing
//     is kept prepared.
//   - The character set utf8mb4: in another one non-ASCII names are others, and interpolation is
//     open to injection in some (gbk, sjis, big5). Collation goes, as do character_set_* and
//     collation_connection among the Params.
//   - autocommit=1: a lock refuses a session without, and the server's configuration may turn it
//     off.
//   - RejectReadOnly: a write that fails as the server is read-only discards the connection, so
//     that the pool finds the new primary after a failover.
//   - CheckConnLiveness: a connection that died while idle is replaced, not reported.
//   - At most 10 connections, 4 of them idle. One that is older than 3 minutes is replaced when it
//     is next used, by one that was opened before: so the pool follows a host name to another
//     server, and loses no connection while the server has none left to give (max_connections).
//     Meanwhile there is one more connection. One that nobody has used for 3 minutes is closed.
//
// These hold unless the config says otherwise:
//
//   - Timeout: 5 s, for all of connecting. By itself the driver applies it only to the dial; a
//     server that accepts but doesn't answer would block the pool's own attempts for ever.
//   - innodb_lock_wait_timeout=1 and lock_wait_timeout=1 (Params): a statement that a lock gave up
//     doesn't linger at the server for long.
//   - Logger: the driver's messages go to klog at level 2. The driver prints them to stderr, also
//     those about a connection that the pool will replace.
//   - Loc: UTC, as the driver panics at a time without one.
//
// All else (TLS, ReadTimeout, ParseTime, ClientFoundRows, ...) stays as it is; the locks don't
// depend on it.
func Open(config *mysql.Config) (*sql.DB, error) {
	if config == nil {
		return nil, wrap("open", "", errors.New("the config is nil; make one with ConfigFromEnv, mysql.ParseDSN or mysql.NewConfig"), nil)
	}
	config, err := harden(config)
	if err == nil {
		_, err = mysql.NewConnector(config)
	}
	if err != nil {
		return nil, wrap("open", "", fmt.Errorf("%w; correct the config's Net, Addr, TLSConfig or ServerPubKey", err), nil)
	}
	return newPool(config, connMaxLifetime, successorPause), nil
}

// newPool makes the pool of Open from a config that is hardened.
func newPool(config *mysql.Config, lifetime, pause time.Duration) *sql.DB {
	db := sql.OpenDB(newConnector(config, lifetime, pause))
	db.SetMaxOpenConns(maxOpenConns)
	db.SetMaxIdleConns(maxIdleConns)
	db.SetConnMaxIdleTime(lifetime)
	return db
}

// harden returns a copy of config with what Open promises.
func harden(config *mysql.Config) (*mysql.Config, error) {
	c := config.Clone()
	c.InterpolateParams = true
	c.RejectReadOnly = true
	c.CheckConnLiveness = true
	// Also clears the collation. SET NAMES is sent on each connection: a server with
	// skip-character-set-client-handshake ignores what the driver says before.
	if err := c.Apply(mysql.Charset("utf8mb4", "")); err != nil {
		return nil, err
	}
	// The driver sends "SET name = value, ..." in the order of the map, so that a variable that is
	// there twice, in two spellings, has a random value. A new map, as Clone shares an empty one.
	c.Params = map[string]string{"innodb_lock_wait_timeout": lockWait, "lock_wait_timeout": lockWait, "autocommit": "1"}
	for name, value := range config.Params {
		switch variable := sessionVariable(name); variable {
		case "autocommit", "character_set_client", "character_set_connection", "character_set_results", "collation_connection":
			continue
		case "innodb_lock_wait_timeout", "lock_wait_timeout":
			c.Params[variable] = value
		default:
			c.Params[name] = value
		}
	}
	if c.Timeout <= 0 {
		c.Timeout = connectTimeout
	}
	if c.Loc == nil {
		c.Loc = time.UTC
	}
	if c.Logger == nil {
		c.Logger = mysql.NewConfig().Logger
	}
	if isDriversLogger(c.Logger) {
		c.Logger = klogLogger{}
	}
	return c, nil
}

// scope is what makes a variable of a SET statement the session's, which it is without, too.
var scope = regexp.MustCompile(`^(?:@@)?(?:(?:session|local)(?:\s*\.\s*|\s+))?`)

// sessionVariable is the plain name of a variable that may be written as "@@SESSION.autocommit",
// "local autocommit" or "`autocommit`". A global variable keeps its prefix.
func sessionVariable(name string) string {
	name = strings.ToLower(strings.TrimSpace(strings.ReplaceAll(name, "`", "")))
	return scope.ReplaceAllString(name, "")
}

// connector makes connections in a bounded time, and replaces them when they are old.
type connector struct {
	config     *mysql.Config
	preparing  atomic.Int32 // untried, works or fails
	successors *successors
}

func newConnector(config *mysql.Config, lifetime, pause time.Duration) *connector {
	c := &connector{config: config}
	c.successors = newSuccessors(lifetime, pause, func(ctx context.Context) (*preparedConn, error) {
		conn, err := c.open(ctx)
		next, _ := conn.(*preparedConn) // as the connection that needs it
		return next, err
	})
	return c
}

// Connect takes the connection that was opened for an old one's successor, if
// there is one: the server may have no other.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	if next := c.successors.take(); next != nil {
		return next, nil
	}
	return c.open(ctx)
}

// open bounds the handshake, the login and the SET statements as well:
// database/sql's own attempts, when others wait for the pool, have no deadline.
//
// The driver's connector is made anew, as it copies the config: after one server
// without TLS, the driver with AllowFallbackToPlaintext drops TLS from the
// config for all connections to come, without a lock.
func (c *connector) open(ctx context.Context) (driver.Conn, error) {
	once, err := mysql.NewConnector(c.config)
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	conn, err := once.Connect(bounded)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("no connection to the server within %v: %w", c.config.Timeout, bounded.Err())
	}
	if whole, ok := conn.(driverConn); ok {
		conn = &preparedConn{driverConn: whole, pool: &c.preparing, database: c.config.DBName, opened: time.Now(), successors: c.successors}
	}
	return conn, err
}

// Close is called by the Close of the pool.
func (c *connector) Close() error {
	c.successors.close()
	return nil
}

func (c *connector) Driver() driver.Driver { return &mysql.MySQLDriver{} }

// isDriversLogger recognises the logger that mysql.NewConfig and
// mysql.ParseDSN put into each config. The variable is the driver's own, and
// its value a program's choice after mysql.SetLogger; so by what it is.
func isDriversLogger(l mysql.Logger) bool {
	std, ok := l.(*log.Logger)
	return ok && std != nil && std.Prefix() == "[mysql] " && std.Writer() == os.Stderr
}

// klogLogger is a mysql.Logger.
type klogLogger struct{}

func (klogLogger) Print(v ...any) {
	if logger := klog.Background().V(2); logger.Enabled() {
		logger.Info("MySQL driver", "message", driverMessage(v...))
	}
}

// driverMessage is what the driver says, without the server's address.
func driverMessage(v ...any) string {
	words := make([]any, len(v))
	for i, word := range v {
		if err, ok := word.(error); ok && err != nil {
			word = publicText(err)
		}
		words[i] = word
	}
	return fmt.Sprint(words...)
}
