package mysqllock

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-sql-driver/mysql"
	"k8s.io/klog/v2"
)

// ConfigFromEnv reads the configuration of a connection from the environment:
//
//	MYSQL_USER             the account
//	MYSQL_PASSWORD         its password; must be set, may be empty
//	MYSQL_HOST             the server's host name or address, or the path of its
//	                       unix socket (what begins with "/")
//	MYSQL_PORT             default 3306; unused with a socket
//	MYSQL_DBNAME           the database that holds the tables
//	MYSQL_TLS              true: encrypt, and verify the server's certificate;
//	                       skip-verify: encrypt, verify nothing;
//	                       preferred: skip-verify if the server offers TLS, else
//	                       no encryption; false (default): no encryption
//	MYSQL_TLS_CA           PEM file of the certificate authorities to trust;
//	                       default: the system's
//	MYSQL_TLS_CERT         PEM file of the client's certificate
//	MYSQL_TLS_KEY          PEM file of its private key
//	MYSQL_TLS_SERVER_NAME  the name that the server's certificate must have;
//	                       default: MYSQL_HOST
//
// A variable that is set to the empty string counts as unset, apart from
// MYSQL_PASSWORD. A file or a server name makes MYSQL_TLS true if it is unset.
// Only MYSQL_TLS=true keeps somebody on the way from posing as the server; the
// other three may even hand the password to him.
//
// The client's certificate and key are read again for each connection, so that
// they can be renewed while the process runs; the authorities are read once.
//
// One error names every variable that is missing or can't be used, and no
// variable's value. Nothing is connected or looked up.
func ConfigFromEnv() (*mysql.Config, error) {
	var e environment
	config := mysql.NewConfig()
	config.User = e.required("MYSQL_USER", "set it to the name of the account")
	var set bool
	if config.Passwd, set = os.LookupEnv("MYSQL_PASSWORD"); !set {
		e.refuse("MYSQL_PASSWORD", errors.New("is not set"), "set it, to the empty string if the account has no password")
	}
	config.Net, config.Addr = e.address()
	config.DBName = e.required("MYSQL_DBNAME", "set it to the name of the database that holds the tables")
	if utf8.RuneCountInString(config.DBName) > 64 {
		e.refuse("MYSQL_DBNAME", errors.New("has more than 64 characters"), "set it to the name of the database that holds the tables")
	}
	config.TLS, config.TLSConfig = e.tls(config.Net)
	// What the driver makes of the name "preferred".
	config.AllowFallbackToPlaintext = config.TLSConfig == "preferred"
	if len(e.problems) > 0 {
		return nil, &opError{op: "read the configuration from the environment", cause: e.problems}
	}
	return config, nil
}

// environment collects what is wrong with the environment, in the order in
// which the variables are read. The texts never show a value: whoever mixes two
// variables up would find his password in the log.
type environment struct {
	problems problems
}

type problems []error

func (p problems) Error() string {
	var texts []string
	for _, err := range p {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (p problems) Unwrap() []error { return p }

func (e *environment) refuse(variable string, cause error, remedy string) {
	e.problems = append(e.problems, fmt.Errorf("%s %w (%s)", variable, cause, remedy))
}

// text reads a variable that is a name or a path; "" if it can't be used.
func (e *environment) text(variable string) string {
	value := os.Getenv(variable)
	switch {
	case strings.Contains(value, "-----BEGIN"): // in one of the variables for files
		e.refuse(variable, errors.New("holds PEM text"), "write that to a file, and set the variable to the file's path")
		return ""
	case strings.TrimSpace(value) != value, strings.ContainsFunc(value, unicode.IsControl):
		e.refuse(variable, errors.New("begins or ends with white space, or has a control character"),
			"remove that; often it is the line end of the file that the value came from")
		return ""
	}
	return value
}

func (e *environment) required(variable, remedy string) string {
	if os.Getenv(variable) == "" {
		e.refuse(variable, errors.New("is not set"), remedy)
	}
	return e.text(variable)
}

// address reads MYSQL_HOST and MYSQL_PORT.
func (e *environment) address() (network, address string) {
	host := e.host()
	port := e.port()
	if strings.HasPrefix(host, "/") {
		return "unix", host
	}
	return "tcp", net.JoinHostPort(host, port)
}

func (e *environment) host() string {
	host := e.required("MYSQL_HOST", "set it to the server's host name or address, or to the path of its socket")
	if host == "" || strings.HasPrefix(host, "/") {
		return host
	}
	if isHost(host) {
		return strings.Trim(host, "[]")
	}
	cause, remedy := "is neither a host name, nor an address, nor the path of a socket",
		"set it to the host alone, without user, protocol, port or database"
	if h, p, err := net.SplitHostPort(host); err == nil && isHost(h) && strings.Trim(p, "0123456789") == "" {
		cause, remedy = "has a port", "put the port in MYSQL_PORT, and the host alone in MYSQL_HOST"
	}
	e.refuse("MYSQL_HOST", errors.New(cause), remedy)
	return ""
}

func isHost(s string) bool {
	address := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		address = s[1 : len(s)-1]
	}
	if _, err := netip.ParseAddr(address); err == nil {
		return true
	}
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(".-_", r)
	})
}

func (e *environment) port() string {
	value := os.Getenv("MYSQL_PORT")
	if value == "" {
		return "3306"
	}
	port, err := strconv.ParseUint(value, 10, 16)
	switch {
	case err == nil && port > 0:
		return strconv.FormatUint(port, 10)
	case strings.HasPrefix(value, "tcp://"):
		e.refuse("MYSQL_PORT", errors.New("is a URL, as Kubernetes sets it where a Service is named mysql"),
			"set MYSQL_PORT in the container's env, for example to 3306, or enableServiceLinks: false in the pod's spec")
	default:
		e.refuse("MYSQL_PORT", errors.New("is no number from 1 to 65535"), "set it to the server's port, or leave it unset for 3306")
	}
	return ""
}

// tls reads the MYSQL_TLS variables. The mode that it returns besides is for
// the config's TLSConfig: the driver needs only the tls.Config, but that can't
// be put in a DSN, and a DSN made from the config must not mean plain text.
func (e *environment) tls(network string) (config *tls.Config, mode string) {
	mode = os.Getenv("MYSQL_TLS")
	config = &tls.Config{MinVersion: tls.VersionTLS12}

	if file := e.text("MYSQL_TLS_CA"); file != "" {
		var err error
		if config.RootCAs, err = readAuthorities(file); err != nil {
			e.refuse("MYSQL_TLS_CA", err, "set it to the path of a PEM file with the authorities' certificates")
		}
	}
	cert, key := e.text("MYSQL_TLS_CERT"), e.text("MYSQL_TLS_KEY")
	switch given, missing := "MYSQL_TLS_CERT", "MYSQL_TLS_KEY"; {
	case (os.Getenv(given) == "") != (os.Getenv(missing) == ""):
		if os.Getenv(given) == "" {
			given, missing = missing, given
		}
		e.refuse(missing, errors.New("is not set"), "set it, or unset "+given+": a certificate and its private key go together")
	case cert != "" && key != "":
		if _, err := readKeyPair(cert, key); err != nil {
			e.refuse("MYSQL_TLS_CERT and MYSQL_TLS_KEY", err, "set them to the paths of PEM files with the client's certificate and its private key")
			break
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate, err := readKeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("the client's certificate (MYSQL_TLS_CERT, MYSQL_TLS_KEY) %w", err)
			}
			return &certificate, nil
		}
	}
	config.ServerName = e.text("MYSQL_TLS_SERVER_NAME")

	// What is set, and by which modes it would be ignored.
	for _, v := range []struct {
		name      string
		verifying bool // means something only if the server is verified
	}{{"MYSQL_TLS_CA", true}, {"MYSQL_TLS_CERT", false}, {"MYSQL_TLS_KEY", false}, {"MYSQL_TLS_SERVER_NAME", true}} {
		if os.Getenv(v.name) == "" {
			continue
		}
		switch mode {
		case "":
			mode = "true"
		case "false":
			e.refuse(v.name, errors.New("is set, but MYSQL_TLS=false means no TLS"), "unset it, or set MYSQL_TLS=true")
		case "skip-verify", "preferred":
			if v.verifying {
				e.refuse(v.name, fmt.Errorf("is set, but MYSQL_TLS=%s means that no certificate is verified", mode), "unset it, or set MYSQL_TLS=true")
			}
		}
	}
	switch mode {
	case "", "false":
		return nil, ""
	case "true":
		if network == "unix" && os.Getenv("MYSQL_TLS_SERVER_NAME") == "" {
			e.refuse("MYSQL_TLS_SERVER_NAME", errors.New("is not set"), "set it to the name in the server's certificate: a socket has none to verify")
		}
	case "skip-verify", "preferred":
		config.InsecureSkipVerify = true // asked for
	default:
		e.refuse("MYSQL_TLS", errors.New("is not a mode"), "set it to false, true, skip-verify or preferred, or leave it unset")
	}
	return config, mode
}

func readAuthorities(file string) (*x509.CertPool, error) {
	pem, err := readFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("has no certificate in PEM form")
	}
	return pool, nil
}

func readKeyPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readFile(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("can't be used: %w", err)
	}
	return pair, nil
}

// readFile leaves the path out of its error: it may be anything, as a secret in
// the wrong variable.
func readFile(file string) ([]byte, error) {
	content, err := os.ReadFile(file)
	var inner *fs.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
	return content, nil
}

// The pool's limits. A lock has one operation under way, so that ten connections
// serve several elections, with some guards and a Migrate besides, and a server
// with a hundred candidates still has connections left.
const (
	maxOpenConns = 10
	// maxIdleConns is more than the default of 2, so that several elections
	// don't make a connection for each renewal. Idle connections have no age
	// limit: one shorter than the retry period would do just that.
	maxIdleConns = 4
	// connMaxLifetime lets the pool follow a DNS name, a load balancer or a
	// proxy to another server, and is shorter than the time for which most
	// firewalls remember a silent connection.
	connMaxLifetime = 3 * time.Minute
	// connectTimeout is for a config without a Timeout.
	connectTimeout = 5 * time.Second
)

// lockWait is how long, in seconds, a statement waits for a row or a table at
// the server. Less than the 1.5 s after which a lock with client-go's timings
// gives the statement up: an abandoned one would go on waiting, for 50 s by
// default and up to a year for a table, and each retry would leave one more.
const lockWait = "1"

// Open makes a small pool for locks from a config, which may come from
// ConfigFromEnv, mysql.ParseDSN or, filled in by hand, mysql.NewConfig. It does
// no I/O: the first operation connects. The config is copied, not changed. The
// pool is the caller's; close it when the last elector has returned.
//
// The pool is for elections. An application that keeps transactions open, or
// runs many queries at once, does so in a pool of its own, or a renewal has to
// wait for a connection until its deadline is over and the lease is lost.
//
// Whatever the config says, these hold:
//
//   - InterpolateParams: a statement is one round trip. Otherwise the driver
//     prepares it first, which is another, and a renewal has 1.5 s for all.
//     Only polls and renewals are prepared, once by each connection, which spares
//     the server their text every few seconds. They are sent as text where a
//     proxy, or max_prepared_stmt_count, refuses that. In a pool of your own
//     nothing is kept prepared.
//   - The character set utf8mb4: names beyond ASCII are others in another one,
//     and interpolation is open to injection in some (gbk, sjis, big5). Collation
//     goes, as do character_set_* and collation_connection among the Params.
//   - autocommit=1: a lock refuses a session without, and the server's
//     configuration may turn it off.
//   - RejectReadOnly: a write that fails as the server is read-only discards the
//     connection, so that the pool finds the new primary after a failover.
//   - CheckConnLiveness: a connection that died while idle is replaced, not
//     reported.
//   - At most 10 connections, 4 of them idle, none older than 3 minutes.
//
// These hold unless the config says otherwise:
//
//   - Timeout: 5 s, for all of connecting. By itself the driver applies it only
//     to the dial; a server that accepts but doesn't answer would block the
//     pool's own attempts for ever.
//   - innodb_lock_wait_timeout=1 and lock_wait_timeout=1 (Params): a statement
//     that a lock gave up doesn't linger at the server for long.
//   - Logger: the driver's messages go to klog at level 2. The driver prints
//     them to stderr, also those about a connection that the pool will replace.
//   - Loc: UTC, as the driver panics at a time without one.
//
// All else (TLS, ReadTimeout, ParseTime, ClientFoundRows, ...) stays as it is;
// the locks don't depend on it.
func Open(config *mysql.Config) (*sql.DB, error) {
	if config == nil {
		return nil, &opError{op: "open", cause: errors.New("the config is nil"), advice: "make one with ConfigFromEnv, mysql.ParseDSN or mysql.NewConfig"}
	}
	config, err := harden(config)
	if err == nil {
		_, err = mysql.NewConnector(config)
	}
	if err != nil {
		return nil, &opError{op: "open", cause: err, advice: "correct the config's Net, Addr, TLSConfig or ServerPubKey"}
	}
	db := sql.OpenDB(&connector{config: config})
	db.SetMaxOpenConns(maxOpenConns)
	db.SetMaxIdleConns(maxIdleConns)
	db.SetConnMaxLifetime(connMaxLifetime)
	return db, nil
}

// harden returns a copy of config with what Open promises.
func harden(config *mysql.Config) (*mysql.Config, error) {
	c := config.Clone()
	c.InterpolateParams = true
	c.RejectReadOnly = true
	c.CheckConnLiveness = true
	// Also clears the collation. SET NAMES is sent on each connection: a server
	// with skip-character-set-client-handshake ignores what the driver says
	// before.
	if err := c.Apply(mysql.Charset("utf8mb4", "")); err != nil {
		return nil, err
	}
	// The driver sends "SET name = value, ..." in the order of the map, so that
	// a variable that is there twice, in two spellings, has a random value. A new
	// map, as Clone shares an empty one.
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

// scope is what makes a variable of a SET statement the session's, which it is
// without, too.
var scope = regexp.MustCompile(`^(?:@@)?(?:(?:session|local)(?:\s*\.\s*|\s+))?`)

// sessionVariable is the plain name of a variable that may be written as
// "@@SESSION.autocommit", "local autocommit" or "`autocommit`". A global variable
// keeps its prefix.
func sessionVariable(name string) string {
	name = strings.ToLower(strings.TrimSpace(strings.ReplaceAll(name, "`", "")))
	return scope.ReplaceAllString(name, "")
}

// connector makes connections in a bounded time.
type connector struct {
	config    *mysql.Config
	preparing atomic.Int32 // untried, works or fails
}

// Connect bounds the handshake, the login and the SET statements as well:
// database/sql's own attempts, when others wait for the pool, have no deadline.
//
// The driver's connector is made anew, as it copies the config: after one server
// without TLS, the driver with AllowFallbackToPlaintext drops TLS from the
// config for all connections to come, without a lock.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
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
		conn = &preparedConn{driverConn: whole, pool: &c.preparing, database: c.config.DBName}
	}
	return conn, err
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
