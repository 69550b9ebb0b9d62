package mysqllock_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// variables are all that ConfigFromEnv reads.
var variables = []string{
	"MYSQL_USER", "MYSQL_PASSWORD", "MYSQL_HOST", "MYSQL_PORT", "MYSQL_DBNAME",
	"MYSQL_TLS", "MYSQL_TLS_CA", "MYSQL_TLS_CERT", "MYSQL_TLS_KEY", "MYSQL_TLS_SERVER_NAME",
}

// setEnv makes environment the only variables that are set.
func setEnv(t *testing.T, environment ...map[string]string) {
	t.Helper()
	for _, name := range variables {
		t.Setenv(name, "") // restored at the end, also if it is unset here
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range environment {
		for name, value := range e {
			t.Setenv(name, value)
		}
	}
}

const password = "s3cret:/@?Pa55"

// minimal is the least that ConfigFromEnv needs.
func minimal() map[string]string {
	return map[string]string{"MYSQL_USER": "elector", "MYSQL_PASSWORD": password, "MYSQL_HOST": "db.example", "MYSQL_DBNAME": "app"}
}

func TestConfigFromEnvReadsTheEnvironment(t *testing.T) {
	pki := newPKI(t)
	for _, test := range []struct {
		name        string
		environment map[string]string
		want        func(*mysql.Config)
	}{
		{"the least", nil, nil},
		{"an empty password", map[string]string{"MYSQL_PASSWORD": ""}, func(c *mysql.Config) { c.Passwd = "" }},
		{"a password that is kept as it is", map[string]string{"MYSQL_PASSWORD": " 'p\n"}, func(c *mysql.Config) { c.Passwd = " 'p\n" }},
		{"empty variables", map[string]string{"MYSQL_PORT": "", "MYSQL_TLS": "", "MYSQL_TLS_CA": "", "MYSQL_TLS_CERT": "", "MYSQL_TLS_KEY": "", "MYSQL_TLS_SERVER_NAME": ""}, nil},
		{"a port", map[string]string{"MYSQL_PORT": "65535"}, func(c *mysql.Config) { c.Addr = "db.example:65535" }},
		{"an IPv4 address", map[string]string{"MYSQL_HOST": "192.0.2.1"}, func(c *mysql.Config) { c.Addr = "192.0.2.1:3306" }},
		{"an IPv6 address", map[string]string{"MYSQL_HOST": "2001:db8::1", "MYSQL_PORT": "3307"}, func(c *mysql.Config) { c.Addr = "[2001:db8::1]:3307" }},
		{"an IPv6 address in brackets", map[string]string{"MYSQL_HOST": "[2001:db8::1]"}, func(c *mysql.Config) { c.Addr = "[2001:db8::1]:3306" }},
		{"a host name with an underscore", map[string]string{"MYSQL_HOST": "my_db"}, func(c *mysql.Config) { c.Addr = "my_db:3306" }},
		{"a socket", map[string]string{"MYSQL_HOST": "/run/mysqld/mysqld.sock", "MYSQL_PORT": "3307"}, func(c *mysql.Config) { c.Net, c.Addr = "unix", "/run/mysqld/mysqld.sock" }},
		{"no TLS", map[string]string{"MYSQL_TLS": "false"}, nil},
		{"TLS", map[string]string{"MYSQL_TLS": "true"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12}
		}},
		{"TLS that isn't verified", map[string]string{"MYSQL_TLS": "skip-verify"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "skip-verify", &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
		}},
		{"TLS if there is any", map[string]string{"MYSQL_TLS": "preferred"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "preferred", &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
			c.AllowFallbackToPlaintext = true
		}},
		{"a server name alone", map[string]string{"MYSQL_TLS_SERVER_NAME": "db.internal"}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "db.internal"}
		}},
		{"a CA alone", map[string]string{"MYSQL_TLS_CA": pki.ca}, func(c *mysql.Config) {
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pki.pool}
		}},
		{"TLS on a socket", map[string]string{"MYSQL_HOST": "/s", "MYSQL_TLS_SERVER_NAME": "db.internal"}, func(c *mysql.Config) {
			c.Net, c.Addr = "unix", "/s"
			c.TLSConfig, c.TLS = "true", &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "db.internal"}
		}},
		{"TLS that isn't verified on a socket", map[string]string{"MYSQL_HOST": "/s", "MYSQL_TLS": "skip-verify"}, func(c *mysql.Config) {
			c.Net, c.Addr = "unix", "/s"
			c.TLSConfig, c.TLS = "skip-verify", &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			setEnv(t, minimal(), test.environment)
			got, err := mysqllock.ConfigFromEnv()
			if err != nil {
				t.Fatal(err)
			}
			want := mysql.NewConfig()
			want.User, want.Passwd, want.Net, want.Addr, want.DBName = "elector", password, "tcp", "db.example:3306", "app"
			if test.want != nil {
				test.want(want)
			}
			if !sameTLS(got.TLS, want.TLS) {
				t.Errorf("TLS:\ngot  %+v\nwant %+v", got.TLS, want.TLS)
			}
			got.TLS, want.TLS = nil, nil
			if !reflect.DeepEqual(got, want) {
				t.Errorf("\ngot  %+v\nwant %+v", got, want)
			}
		})
	}
}

func sameTLS(a, b *tls.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.MinVersion == b.MinVersion && a.ServerName == b.ServerName && a.InsecureSkipVerify == b.InsecureSkipVerify &&
		a.RootCAs.Equal(b.RootCAs) && len(a.Certificates) == 0 && (a.GetClientCertificate == nil) == (b.GetClientCertificate == nil)
}

func TestConfigFromEnvNamesAllThatIsWrong(t *testing.T) {
	const prefix = "mysqllock: read the configuration from the environment: "
	const (
		noUser     = "MYSQL_USER is not set (set it to the name of the account)"
		noPassword = "MYSQL_PASSWORD is not set (set it, to the empty string if the account has no password)"
		noHost     = "MYSQL_HOST is not set (set it to the server's host name or address, or to the path of its socket)"
		noDatabase = "MYSQL_DBNAME is not set (set it to the name of the database that holds the tables)"
		hasPort    = "MYSQL_HOST has a port (put the port in MYSQL_PORT, and the host alone in MYSQL_HOST)"
		noHostName = "MYSQL_HOST is neither a host name, nor an address, nor the path of a socket (set it to the host alone, without user, protocol, port or database)"
		noPort     = "MYSQL_PORT is no number from 1 to 65535 (set it to the server's port, or leave it unset for 3306)"
		noMode     = "MYSQL_TLS is not a mode (set it to false, true, skip-verify or preferred, or leave it unset)"
		noKey      = "MYSQL_TLS_KEY is not set (set it, or unset MYSQL_TLS_CERT: a certificate and its private key go together)"
		space      = " begins or ends with white space, or has a control character (remove that; often it is the line end of the file that the value came from)"
		caFile     = " (set it to the path of a PEM file with the authorities' certificates)"
		pairFiles  = " (set them to the paths of PEM files with the client's certificate and its private key)"
		pemText    = " holds PEM text (write that to a file, and set the variable to the file's path)"
		disabled   = " is set, but MYSQL_TLS=false means no TLS (unset it, or set MYSQL_TLS=true)"
	)
	unverified := func(mode string) string {
		return " is set, but MYSQL_TLS=" + mode + " means that no certificate is verified (unset it, or set MYSQL_TLS=true)"
	}
	pki := newPKI(t)
	noFile := filepath.Join(t.TempDir(), "none.pem")
	key, err := os.ReadFile(pki.clientKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		environment map[string]string // besides minimal; "unset" unsets
		want        []string
	}{
		{
			"nothing is set",
			map[string]string{"MYSQL_USER": "unset", "MYSQL_PASSWORD": "unset", "MYSQL_HOST": "unset", "MYSQL_DBNAME": "unset"},
			[]string{noUser, noPassword, noHost, noDatabase},
		},
		{
			"all is empty",
			map[string]string{"MYSQL_USER": "", "MYSQL_PASSWORD": "", "MYSQL_HOST": "", "MYSQL_DBNAME": ""},
			[]string{noUser, noHost, noDatabase},
		},
		{
			"all is wrong",
			map[string]string{
				"MYSQL_USER": "elector\n", "MYSQL_PASSWORD": "unset", "MYSQL_HOST": "db:3307", "MYSQL_PORT": "0", "MYSQL_DBNAME": strings.Repeat("d", 65),
				"MYSQL_TLS": "yes", "MYSQL_TLS_CA": noFile, "MYSQL_TLS_CERT": noFile, "MYSQL_TLS_SERVER_NAME": " db",
			},
			[]string{
				"MYSQL_USER" + space, noPassword, hasPort, noPort, "MYSQL_DBNAME has more than 64 characters (set it to the name of the database that holds the tables)",
				"MYSQL_TLS_CA can't be read: no such file or directory" + caFile, noKey, "MYSQL_TLS_SERVER_NAME" + space, noMode,
			},
		},
		{"a host with a port", map[string]string{"MYSQL_HOST": "db:3307"}, []string{hasPort}},
		{"an IPv6 address with a port", map[string]string{"MYSQL_HOST": "[2001:db8::1]:3307"}, []string{hasPort}},
		{"a host with an empty port", map[string]string{"MYSQL_HOST": "db:"}, []string{hasPort}},
		{"a URL as host", map[string]string{"MYSQL_HOST": "tcp://db:3306"}, []string{noHostName}},
		{"a DSN as host", map[string]string{"MYSQL_HOST": "elector:" + password + "@tcp(db)/app"}, []string{noHostName}},
		{"user and password before the host", map[string]string{"MYSQL_HOST": "elector:" + password}, []string{noHostName}},
		{"two hosts", map[string]string{"MYSQL_HOST": "db1,db2"}, []string{noHostName}},
		{"a line end after the host", map[string]string{"MYSQL_HOST": "db\n"}, []string{"MYSQL_HOST" + space}},
		{"a port that is no number", map[string]string{"MYSQL_PORT": "mysql"}, []string{noPort}},
		{"a port that is too large", map[string]string{"MYSQL_PORT": "65536"}, []string{noPort}},
		{"a negative port", map[string]string{"MYSQL_PORT": "-1"}, []string{noPort}},
		{
			"the port that Kubernetes sets for a Service named mysql",
			map[string]string{"MYSQL_PORT": "tcp://10.0.0.11:3306"},
			[]string{"MYSQL_PORT is a URL, as Kubernetes sets it where a Service is named mysql (set MYSQL_PORT in the container's env, for example to 3306, or enableServiceLinks: false in the pod's spec)"},
		},
		{"a mode in capitals", map[string]string{"MYSQL_TLS": "TRUE"}, []string{noMode}},
		{
			"no TLS, but its settings",
			map[string]string{"MYSQL_TLS": "false", "MYSQL_TLS_CA": pki.ca, "MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.clientKey, "MYSQL_TLS_SERVER_NAME": "db"},
			[]string{"MYSQL_TLS_CA" + disabled, "MYSQL_TLS_CERT" + disabled, "MYSQL_TLS_KEY" + disabled, "MYSQL_TLS_SERVER_NAME" + disabled},
		},
		{"a CA that would not be asked", map[string]string{"MYSQL_TLS": "skip-verify", "MYSQL_TLS_CA": pki.ca}, []string{"MYSQL_TLS_CA" + unverified("skip-verify")}},
		{"a server name that would not be compared", map[string]string{"MYSQL_TLS": "preferred", "MYSQL_TLS_SERVER_NAME": "db"}, []string{"MYSQL_TLS_SERVER_NAME" + unverified("preferred")}},
		{
			"a socket and no server name",
			map[string]string{"MYSQL_HOST": "/s", "MYSQL_TLS": "true"},
			[]string{"MYSQL_TLS_SERVER_NAME is not set (set it to the name in the server's certificate: a socket has none to verify)"},
		},
		{"a CA file without a certificate", map[string]string{"MYSQL_TLS_CA": pki.clientKey}, []string{"MYSQL_TLS_CA has no certificate in PEM form" + caFile}},
		{"a folder for a CA file", map[string]string{"MYSQL_TLS_CA": t.TempDir()}, []string{"MYSQL_TLS_CA can't be read: is a directory" + caFile}},
		{
			"a key without a certificate",
			map[string]string{"MYSQL_TLS_KEY": pki.clientKey},
			[]string{"MYSQL_TLS_CERT is not set (set it, or unset MYSQL_TLS_KEY: a certificate and its private key go together)"},
		},
		{"a certificate without a key", map[string]string{"MYSQL_TLS_CERT": pki.clientCert}, []string{noKey}},
		{
			"no key file",
			map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": noFile},
			[]string{"MYSQL_TLS_CERT and MYSQL_TLS_KEY can't be read: no such file or directory" + pairFiles},
		},
		{
			"another certificate's key",
			map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.serverKey},
			[]string{"MYSQL_TLS_CERT and MYSQL_TLS_KEY can't be used: tls: private key does not match public key" + pairFiles},
		},
		{"the key itself", map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": string(key)}, []string{"MYSQL_TLS_KEY" + pemText}},
	} {
		t.Run(test.name, func(t *testing.T) {
			setEnv(t, minimal(), test.environment)
			for name, value := range test.environment {
				if value == "unset" {
					if err := os.Unsetenv(name); err != nil {
						t.Fatal(err)
					}
				}
			}
			config, err := mysqllock.ConfigFromEnv()
			if err == nil || config != nil {
				t.Fatalf("got config %v, error %v", config, err)
			}
			if diff := cmp.Diff(prefix+strings.Join(test.want, "; "), err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConfigFromEnvShowsNoSecret(t *testing.T) {
	// Whoever fills a template in puts a secret in each place, sooner or later.
	const word = "hunter2"
	for _, variable := range variables {
		for _, value := range []string{
			word, word + "\n", " " + word, word + ":" + word, word + ":3306", "elector:" + word + "@db", "tcp://" + word,
			"elector:" + word + "@tcp(db:3306)/app", "/" + word, "-----BEGIN PRIVATE KEY-----\n" + word, strings.Repeat(word, 1000),
		} {
			setEnv(t, minimal(), map[string]string{variable: value})
			if _, err := mysqllock.ConfigFromEnv(); err != nil && (strings.Contains(err.Error(), word) || strings.Contains(err.Error(), password)) {
				t.Errorf("%s=%q: %v", variable, value, err)
			}
		}
	}
}

func TestConfigFromEnvAsADSNDoesNotLoseItsTLS(t *testing.T) {
	for _, mode := range []string{"true", "skip-verify", "preferred"} {
		setEnv(t, minimal(), map[string]string{"MYSQL_TLS": mode})
		config, err := mysqllock.ConfigFromEnv()
		if err != nil {
			t.Fatal(err)
		}
		again, err := mysql.ParseDSN(config.FormatDSN())
		if err != nil {
			t.Fatal(err)
		}
		if again.TLS == nil || again.TLS.InsecureSkipVerify != config.TLS.InsecureSkipVerify {
			t.Errorf("MYSQL_TLS=%s became %+v", mode, again.TLS)
		}
	}
}

func TestConfigFromEnvReadsARenewedClientCertificate(t *testing.T) {
	pki, renewed := newPKI(t), newPKI(t)
	setEnv(t, minimal(), map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.clientKey})
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		certificate, err := config.TLS.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return certificate.Leaf.SerialNumber.String()
	}
	before := serial()
	rename(t, renewed.clientCert, pki.clientCert)
	_, err = config.TLS.GetClientCertificate(nil)
	want := "the client's certificate (MYSQL_TLS_CERT, MYSQL_TLS_KEY) can't be used: tls: private key does not match public key"
	if err == nil || err.Error() != want {
		t.Errorf("with the old key: %v", err)
	}
	rename(t, renewed.clientKey, pki.clientKey)
	if after := serial(); after == before {
		t.Errorf("still certificate %s", after)
	}
}

func TestOpenRefusesWhatItCannotUse(t *testing.T) {
	with := func(change func(*mysql.Config)) *mysql.Config {
		config := mysql.NewConfig()
		config.User, config.Passwd, config.Addr = "elector", password, "db.example:3306"
		change(config)
		return config
	}
	const advice = "; correct the config's Net, Addr, TLSConfig or ServerPubKey"
	for _, test := range []struct {
		name   string
		config *mysql.Config
		want   string
	}{
		{"no config", nil, "mysqllock: open: the config is nil; make one with ConfigFromEnv, mysql.ParseDSN or mysql.NewConfig"},
		{"an unknown TLS config", with(func(c *mysql.Config) { c.TLSConfig = "custom" }), "mysqllock: open: invalid value / unknown config name: custom" + advice},
		{"an unknown public key", with(func(c *mysql.Config) { c.ServerPubKey = "custom" }), "mysqllock: open: invalid value / unknown server pub key name: custom" + advice},
		{"a network without an address", with(func(c *mysql.Config) { c.Net, c.Addr = "pipe", "" }), "mysqllock: open: default addr for network 'pipe' unknown" + advice},
	} {
		t.Run(test.name, func(t *testing.T) {
			db, err := mysqllock.Open(test.config)
			if err == nil || db != nil {
				t.Fatalf("got pool %v, error %v", db, err)
			}
			if err.Error() != test.want {
				t.Errorf("\ngot  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestOpenNeitherConnectsNorChangesTheConfig(t *testing.T) {
	for _, params := range []map[string]string{nil, {}, {"autocommit": "0", "sql_mode": "''"}} {
		config, err := mysql.ParseDSN("elector:" + password + "@tcp(db.example)/app?charset=latin1&collation=gbk_chinese_ci&tls=skip-verify")
		if err != nil {
			t.Fatal(err)
		}
		config.Params = params
		before, n := config.Clone(), len(params)
		db := open(t, config)
		if !reflect.DeepEqual(config, before) || len(config.Params) != n {
			t.Errorf("\nwas %+v\nis  %+v", before, config)
		}
		if stats := db.Stats(); stats.OpenConnections != 0 || stats.MaxOpenConnections != 10 {
			t.Errorf("the pool has %d connections of %d", stats.OpenConnections, stats.MaxOpenConnections)
		}
	}
}

// recorder is a mysql.Logger of a program's own.
type recorder struct {
	mu   sync.Mutex
	text []string
}

func (r *recorder) Print(v ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text = append(r.text, fmt.Sprint(v...))
}

func TestOpenSendsTheDriversMessagesToKlog(t *testing.T) {
	const said = "could not use requested auth plugin 'exotic': this authentication plugin is not supported"
	own, def := &recorder{}, &recorder{}
	for _, test := range []struct {
		name    string
		config  func() *mysql.Config
		own     *recorder // which the messages go to
		verbose int
	}{
		{"the driver's own logger", mysql.NewConfig, nil, 2},
		{"the driver's own logger, below level 2", mysql.NewConfig, nil, 1},
		{"no logger", func() *mysql.Config { return &mysql.Config{AllowNativePasswords: true, MaxAllowedPacket: 1 << 20} }, nil, 2},
		{"a config's logger", func() *mysql.Config { c := mysql.NewConfig(); c.Logger = own; return c }, own, 2},
		{"a logger of SetLogger", func() *mysql.Config {
			drivers := mysql.NewConfig().Logger
			defer func() { _ = mysql.SetLogger(drivers) }()
			_ = mysql.SetLogger(def)
			return mysql.NewConfig()
		}, def, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer klog.CaptureState().Restore()
			logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(test.verbose), ktesting.BufferLogs(true)))
			klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))

			config := test.config()
			config.DialFunc = (&fakeServer{plugin: "exotic"}).dial
			db := open(t, config)
			if err := db.PingContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			logs := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
			if got, want := strings.Contains(logs, said), test.own == nil && test.verbose >= 2; got != want {
				t.Errorf("klog has the message: %t, want %t:\n%s", got, want, logs)
			}
			// The address in an error that closing a connection returns.
			if strings.Contains(logs, "192.0.2.1") {
				t.Errorf("klog shows the server's address:\n%s", logs)
			}
			if test.own != nil && !slices.Contains(test.own.text, said) {
				t.Errorf("the program's logger has only %q", test.own.text)
			}
		})
	}
}

func TestAPoolOutlivesAServerThatAcceptsAndNeverAnswers(t *testing.T) {
	// database/sql connects in the name of those who wait for the pool, without
	// a deadline: attempts that hang would take the pool's places for ever.
	var answering atomic.Bool
	fake := &fakeServer{plugin: "mysql_native_password"}
	var mute []net.Conn
	var mu sync.Mutex
	config := mysql.NewConfig()
	config.Timeout = 50 * time.Millisecond
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if answering.Load() {
			return fake.dial(ctx, network, address)
		}
		client, server := net.Pipe()
		mu.Lock()
		defer mu.Unlock()
		mute = append(mute, server)
		return client, nil
	}
	t.Cleanup(func() {
		for _, conn := range mute {
			_ = conn.Close()
		}
	})
	db := open(t, config)

	var waiting sync.WaitGroup
	for range 3 * db.Stats().MaxOpenConnections {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := db.PingContext(ctx); err == nil {
				t.Error("a server that doesn't answer was reached")
			}
		}()
	}
	waiting.Wait()

	answering.Store(true)
	var conns []*sql.Conn
	eventually(t, 10*time.Second, "every place in the pool can be used", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		// The last of the attempts may still fail now.
		if conn, err := db.Conn(ctx); err == nil {
			conns = append(conns, conn)
		}
		return len(conns) == db.Stats().MaxOpenConnections
	})
	for _, conn := range conns {
		_ = conn.Close()
	}
}

func TestOpenSaysThatConnectingTookTooLong(t *testing.T) {
	config := mysql.NewConfig()
	config.Timeout = 20 * time.Millisecond
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		t.Cleanup(func() { _ = server.Close() })
		return client, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := open(t, config).PingContext(ctx)
	if err == nil || err.Error() != "no connection to the server within 20ms: context deadline exceeded" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestPreferredTLSIsUsedAgainAfterAServerWithoutTLS(t *testing.T) {
	// The driver drops TLS from its config when a server has none, for all
	// connections to come; with the race detector this also finds that it does
	// so without a lock.
	setEnv(t, minimal(), map[string]string{"MYSQL_TLS": "preferred"})
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	fake := &fakeServer{plugin: "mysql_native_password"}
	config.DialFunc = fake.dial
	db := open(t, config)
	var plain sync.WaitGroup
	conns := make([]*sql.Conn, 4)
	for i := range conns {
		plain.Add(1)
		go func() {
			defer plain.Done()
			var err error
			if conns[i], err = db.Conn(t.Context()); err != nil {
				t.Error(err)
			}
		}()
	}
	plain.Wait()
	fake.offersTLS.Store(true)
	if conn, err := db.Conn(t.Context()); err == nil {
		_ = conn.Close()
		t.Error("connected without TLS to a server that offers it")
	}
	if !fake.askedForTLS.Load() {
		t.Error("TLS was not asked for")
	}
	for _, conn := range conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// fakeServer greets with an authentication plugin and says OK to all that
// follows. It hangs up when it is asked for TLS.
type fakeServer struct {
	plugin                 string
	offersTLS, askedForTLS atomic.Bool
}

func (s *fakeServer) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer func() { _ = server.Close() }()
		_ = s.serve(server) // ends when the client hangs up
	}()
	return noisyConn{client}, nil
}

// noisyConn can't be closed without an error.
type noisyConn struct{ net.Conn }

func (c noisyConn) Close() error {
	_ = c.Conn.Close()
	return &net.OpError{Op: "close", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 3306}, Err: net.ErrClosed}
}

func (s *fakeServer) serve(conn net.Conn) error {
	const (
		longPassword = 1 << 0
		protocol41   = 1 << 9
		ssl          = 1 << 11
		secure       = 1 << 15
		pluginAuth   = 1 << 19
	)
	capabilities := uint32(longPassword | protocol41 | secure | pluginAuth)
	if s.offersTLS.Load() {
		capabilities |= ssl
	}
	greeting := append([]byte{10}, "8.0.0\x00\x01\x00\x00\x00scramble\x00"...)
	greeting = binary.LittleEndian.AppendUint16(greeting, uint16(capabilities))
	greeting = append(greeting, 45, 2, 0) // utf8mb4, autocommit
	greeting = binary.LittleEndian.AppendUint16(greeting, uint16(capabilities>>16))
	greeting = append(greeting, 21)
	greeting = append(greeting, make([]byte, 10)...)
	greeting = append(greeting, "the-second-p\x00"+s.plugin+"\x00"...)
	if err := writePacket(conn, 0, greeting); err != nil {
		return err
	}
	for {
		header := make([]byte, 4)
		if _, err := io.ReadFull(conn, header); err != nil {
			return err
		}
		sequence := header[3]
		header[3] = 0
		body := make([]byte, binary.LittleEndian.Uint32(header))
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		if sequence == 1 && len(body) == 32 && binary.LittleEndian.Uint32(body)&ssl != 0 {
			s.askedForTLS.Store(true)
			return nil
		}
		reply := []byte{0, 0, 0, 2, 0, 0, 0}
		if sequence == 0 && body[0] == comStmtPrepare {
			reply = append(binary.LittleEndian.AppendUint16([]byte{0xff}, 1047), "#08S01Unknown command"...)
		}
		if err := writePacket(conn, sequence+1, reply); err != nil {
			return err
		}
	}
}

func writePacket(w io.Writer, sequence byte, body []byte) error {
	packet := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	packet[3] = sequence
	_, err := w.Write(append(packet, body...))
	return err
}

// TestOpenOnARealServer has a server of its own, with a certificate, as its
// parts change global variables.
func TestOpenOnARealServer(t *testing.T) {
	pki := newPKI(t)
	server, config := ownServer(t, "--ssl-ca="+pki.ca, "--ssl-cert="+pki.serverCert, "--ssl-key="+pki.serverKey)
	s := &realServer{Server: server, pki: pki, admin: open(t, server.Config()), database: config.DBName}
	if err := mysqllock.Migrate(t.Context(), open(t, s.config())); err != nil {
		t.Fatal(err)
	}
	t.Run("TLS is as the environment says", s.testTLS)
	t.Run("an account can require a client certificate", s.testClientCertificate)
	t.Run("accounts of each kind log in with and without TLS", s.testPlugins)
	t.Run("the session is fit for a lock whatever config and server say", s.testSession)
	t.Run("a statement is one round trip", s.testRoundTrips)
	t.Run("a read-only server's connection is discarded", s.testReadOnly)
	t.Run("a statement that was given up leaves the server soon", s.testAbandoned)
}

type realServer struct {
	*mysqltest.Server
	pki      *pki
	admin    *sql.DB
	database string
}

// config is the administrator's, with the database.
func (s *realServer) config() *mysql.Config {
	config := s.Server.Config()
	config.DBName = s.database
	return config
}

// account makes an account that may do what a lock does, and returns its
// configuration. how is what follows its name in CREATE USER, with {password}.
func (s *realServer) account(t *testing.T, name, how string) *mysql.Config {
	t.Helper()
	config := s.config()
	config.User, config.Passwd = name, password
	exec(t, s.admin, "CREATE USER "+name+"@'%' "+strings.ReplaceAll(how, "{password}", "'"+password+"'"))
	exec(t, s.admin, "GRANT SELECT, INSERT, UPDATE ON "+s.database+".* TO "+name+"@'%'")
	return config
}

// environment is config as ConfigFromEnv reads it.
func environment(t *testing.T, config *mysql.Config) map[string]string {
	t.Helper()
	host, port, err := net.SplitHostPort(config.Addr)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"MYSQL_USER": config.User, "MYSQL_PASSWORD": config.Passwd, "MYSQL_HOST": host, "MYSQL_PORT": port, "MYSQL_DBNAME": config.DBName,
	}
}

// connect opens a pool for an environment and reads an election that is not
// there: the error is what a lock says. Also the session's cipher.
func connect(t *testing.T, environment ...map[string]string) (cipher string, _ error) {
	t.Helper()
	setEnv(t, environment...)
	config, err := mysqllock.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	config.Logger = &mysql.NopLogger{}
	db := open(t, config)
	if _, _, err := newLock(t, db, "e", "me", mysqllock.WithOperationTimeout(10*time.Second)).Get(t.Context()); !strings.Contains(err.Error(), "not found") {
		return "", err
	}
	var name string
	if err := db.QueryRowContext(t.Context(), "SHOW SESSION STATUS LIKE 'Ssl_cipher'").Scan(&name, &cipher); err != nil {
		t.Fatal(err)
	}
	return cipher, nil
}

func (s *realServer) testTLS(t *testing.T) {
	other := newPKI(t)
	base := environment(t, s.config())
	const (
		unknownCA = `mysqllock: get "e": tls: failed to verify certificate: x509: certificate signed by unknown authority`
		wrongName = `mysqllock: get "e": tls: failed to verify certificate: the server's certificate is not for the host name that was dialled`
	)
	for _, test := range []struct {
		name      string
		variables map[string]string
		encrypted bool
		err       string
	}{
		{"false", map[string]string{"MYSQL_TLS": "false"}, false, ""},
		{"unset", nil, false, ""},
		{"true with the server's CA", map[string]string{"MYSQL_TLS": "true", "MYSQL_TLS_CA": s.pki.ca}, true, ""},
		{"the server's CA alone", map[string]string{"MYSQL_TLS_CA": s.pki.ca}, true, ""},
		{"another name of the server", map[string]string{"MYSQL_TLS_CA": s.pki.ca, "MYSQL_TLS_SERVER_NAME": "db.internal"}, true, ""},
		{"skip-verify", map[string]string{"MYSQL_TLS": "skip-verify"}, true, ""},
		{"preferred", map[string]string{"MYSQL_TLS": "preferred"}, true, ""},
		{"another CA", map[string]string{"MYSQL_TLS_CA": other.ca}, false, unknownCA},
		{"true with the system's CAs", map[string]string{"MYSQL_TLS": "true"}, false, unknownCA},
		{"not a name of the server", map[string]string{"MYSQL_TLS_CA": s.pki.ca, "MYSQL_TLS_SERVER_NAME": "other.internal"}, false, wrongName},
	} {
		t.Run(test.name, func(t *testing.T) {
			cipher, err := connect(t, base, test.variables)
			if test.err == "" && err != nil || (cipher != "") != test.encrypted {
				t.Errorf("cipher %q, error %v", cipher, err)
			}
			if test.err == "" {
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), test.err) {
				t.Fatalf("\ngot  %v\nwant %s...", err, test.err)
			}
			for _, secret := range []string{"127.0.0.1", ".internal", base["MYSQL_PORT"], base["MYSQL_PASSWORD"]} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in %v", secret, err)
				}
			}
		})
	}
}

func (s *realServer) testClientCertificate(t *testing.T) {
	config := s.account(t, "certified", "IDENTIFIED BY {password} REQUIRE X509")
	base := environment(t, config)
	base["MYSQL_TLS_CA"] = s.pki.ca
	cipher, err := connect(t, base, map[string]string{"MYSQL_TLS_CERT": s.pki.clientCert, "MYSQL_TLS_KEY": s.pki.clientKey})
	if err != nil || cipher == "" {
		t.Errorf("with a certificate: cipher %q, error %v", cipher, err)
	}
	_, err = connect(t, base)
	want := `mysqllock: get "e": Error 1045 (28000): Access denied for user 'certified'@'...' (using password: YES); check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)`
	if err == nil || err.Error() != want {
		t.Errorf("without one:\ngot  %v\nwant %s", err, want)
	}
}

func (s *realServer) testPlugins(t *testing.T) {
	if s.MariaDB() {
		// A package of its own in some distributions, so that it may be missing.
		if _, err := s.admin.ExecContext(t.Context(), "INSTALL SONAME 'auth_ed25519'"); err != nil {
			t.Logf("no ed25519: %v", err)
		}
	}
	rows, err := s.admin.QueryContext(t.Context(), "SELECT PLUGIN_NAME FROM information_schema.PLUGINS WHERE PLUGIN_TYPE = 'AUTHENTICATION' AND PLUGIN_STATUS = 'ACTIVE'")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var plugins []string
	for rows.Next() {
		var plugin string
		if err := rows.Scan(&plugin); err != nil {
			t.Fatal(err)
		}
		if slices.Contains([]string{"caching_sha2_password", "sha256_password", "mysql_native_password", "ed25519"}, plugin) {
			plugins = append(plugins, plugin)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("plugins: %v", plugins)
	if len(plugins) == 0 {
		t.Error("the server offers none of the plugins that the driver knows")
	}
	for _, plugin := range plugins {
		how := "IDENTIFIED WITH " + plugin + " BY {password}"
		if s.MariaDB() {
			how = "IDENTIFIED VIA " + plugin + " USING PASSWORD({password})"
		}
		// An account for each way: caching_sha2_password takes another path, and
		// needs no RSA key, once the server has the password in its cache.
		for way, variables := range map[string]map[string]string{"plain": nil, "tls": {"MYSQL_TLS_CA": s.pki.ca}} {
			base := environment(t, s.account(t, plugin[:5]+"_"+way, how))
			for _, attempt := range []string{"first", "second"} {
				cipher, err := connect(t, base, variables)
				if err != nil || (cipher != "") != (way == "tls") {
					t.Errorf("%s, %s, %s time: cipher %q, error %v", plugin, way, attempt, cipher, err)
				}
			}
			base["MYSQL_PASSWORD"] = "wrong-" + password
			_, err := connect(t, base, variables)
			if err == nil || !strings.Contains(err.Error(), "Access denied for user") || strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("%s, %s, wrong password: %v", plugin, way, err)
			}
		}
	}
}

func (s *realServer) testSession(t *testing.T) {
	account := s.account(t, "plain", "IDENTIFIED BY {password}")
	dsn := fmt.Sprintf("%s:%s@tcp(%s)/%s?", account.User, account.Passwd, account.Addr, account.DBName)
	const defaults = "1 utf8mb4 utf8mb4 utf8mb4 utf8mb4 1 1"
	for _, test := range []struct {
		name, dsn, want string
	}{
		{"nothing", dsn, defaults},
		{"latin1", dsn + "charset=latin1&collation=latin1_swedish_ci", defaults},
		{"a collation alone", dsn + "collation=latin1_swedish_ci", defaults},
		{"a collation that makes interpolation unsafe", dsn + "charset=gbk&collation=gbk_chinese_ci", defaults},
		{"a collation that no server has", dsn + "charset=utf8mb4&collation=utf8mb4_none", defaults},
		{"character sets as variables", dsn + "character_set_client=gbk&@@session.character_set_connection=latin1&`character_set_results`=latin1&SESSION collation_connection=latin1_swedish_ci", defaults},
		{"autocommit off", dsn + "autocommit=0", defaults},
		{"autocommit off in other words", dsn + "@@Local.AutoCommit=OFF", defaults},
		{"lock waits of its own", dsn + "innodb_lock_wait_timeout=7&@@session.lock_wait_timeout=8", "1 utf8mb4 utf8mb4 utf8mb4 utf8mb4 7 8"},
		{"a variable that Open doesn't know", dsn + "sql_mode=''", defaults},
	} {
		t.Run(test.name, func(t *testing.T) {
			// init_connect is not for administrators.
			for _, server := range []string{"", "SET NAMES latin1, autocommit = 0, innodb_lock_wait_timeout = 49"} {
				exec(t, s.admin, "SET GLOBAL init_connect = ?", server)
				config, err := mysql.ParseDSN(test.dsn)
				if err != nil {
					t.Fatal(err)
				}
				db := open(t, config)
				var got string
				if err := db.QueryRowContext(t.Context(), `SELECT CONCAT_WS(' ', @@autocommit = 1, @@character_set_client, @@character_set_connection,
					@@character_set_results, LEFT(@@collation_connection, 7), @@innodb_lock_wait_timeout, @@lock_wait_timeout)`).Scan(&got); err != nil {
					t.Fatal(err)
				}
				if got != test.want {
					t.Errorf("with the server's %q:\ngot  %s\nwant %s", server, got, test.want)
				}
				const text = "größe 東 😀 ¿'; -- \\' \x00 \""
				var same string
				if err := db.QueryRowContext(t.Context(), "SELECT ?", text).Scan(&same); err != nil || same != text {
					t.Errorf("got %q, error %v", same, err)
				}
			}
		})
	}
	exec(t, s.admin, "SET GLOBAL init_connect = ''")
}

// recordingConn counts what is sent on a connection that isn't encrypted.
type recordingConn struct {
	net.Conn
	sent *[]string
}

func (c recordingConn) Write(b []byte) (int, error) {
	*c.sent = append(*c.sent, string(b[4:]))
	return c.Conn.Write(b)
}

func (s *realServer) testRoundTrips(t *testing.T) {
	var sent []string
	config := s.config()
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return recordingConn{conn, &sent}, err
	}
	db := open(t, config)
	if err := db.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	const query = "\x03"
	queries := func() (q []string) {
		for _, packet := range sent {
			if strings.HasPrefix(packet, query+"S") {
				q = append(q, packet)
			}
		}
		return q
	}
	if got := queries(); len(got) != 2 || got[0] != query+"SET NAMES utf8mb4" || !strings.HasPrefix(got[1], query+"SET ") {
		t.Errorf("after the login: %q; want SET NAMES and one SET for the variables", got)
	}

	sent = nil
	var one int
	if err := db.QueryRowContext(t.Context(), "SELECT ? FROM DUAL WHERE ? = 'x'", 1, "x").Scan(&one); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "UPDATE election_records SET leader_name = ? WHERE election_name = ?", "me", "none")
	want := []string{query + "SELECT 1 FROM DUAL WHERE 'x' = 'x'", query + "UPDATE election_records SET leader_name = 'me' WHERE election_name = 'none'"}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Error(diff)
	}
}

func (s *realServer) testReadOnly(t *testing.T) {
	config := s.account(t, "writer", "IDENTIFIED BY {password}")
	db := open(t, config)
	const write = "INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES (?, 0, '')"
	session := func() (id int64) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "SELECT CONNECTION_ID()").Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	exec(t, db, write, "before")
	before := session()

	exec(t, s.admin, "SET GLOBAL read_only = 1")
	defer exec(t, s.admin, "SET GLOBAL read_only = 0") // when an assertion fails
	_, err := db.ExecContext(t.Context(), write, "during")
	if err == nil {
		t.Error("a read-only server took a write")
	}
	t.Logf("read-only: %v", err)
	if after := session(); after == before {
		t.Errorf("the connection %d of the read-only server is still in the pool", before)
	}
	exec(t, s.admin, "SET GLOBAL read_only = 0")
	exec(t, db, write, "after")
}

func (s *realServer) testAbandoned(t *testing.T) {
	db := open(t, s.config())
	exec(t, db, "INSERT INTO election_fences (election_name, fencing_token, leader_uid) VALUES ('held', 0, '')")
	holder, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback() }()
	const wait = "UPDATE election_fences SET fencing_token = 1 WHERE election_name = 'held'"
	if _, err := holder.ExecContext(t.Context(), wait); err != nil {
		t.Fatal(err)
	}
	waiting := func() (n int) {
		t.Helper()
		if err := s.admin.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO = ?", wait).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gaveUp := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(ctx, wait)
		gaveUp <- err
	}()
	eventually(t, 5*time.Second, "the statement waits at the server", func() bool { return waiting() == 1 })
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	eventually(t, 10*time.Second, "the statement has left the server", func() bool { return waiting() == 0 })
}

// pki is a certificate authority with one server and one client, as PEM files.
type pki struct {
	pool                                             *x509.CertPool
	ca, serverCert, serverKey, clientCert, clientKey string
	expiredCert, expiredKey                          string // of the server as well
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, content []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	now := time.Now()
	issue := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
		if err != nil {
			t.Fatal(err)
		}
		template.SerialNumber, template.NotBefore = serial, now.Add(-time.Hour)
		if template.NotAfter.IsZero() {
			template.NotAfter = now.Add(time.Hour)
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return certificate, key
	}
	p := &pki{pool: x509.NewCertPool()}
	ca, caKey := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	p.pool.AddCert(ca)
	p.ca = write("ca.pem", "CERTIFICATE", ca.Raw)
	pair := func(name string, template *x509.Certificate) (certFile, keyFile string) {
		t.Helper()
		template.Subject, template.KeyUsage = pkix.Name{CommonName: name}, x509.KeyUsageDigitalSignature
		certificate, key := issue(template, ca, caKey)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return write(name+".pem", "CERTIFICATE", certificate.Raw), write(name+"-key.pem", "PRIVATE KEY", der)
	}
	server := x509.Certificate{
		DNSNames: []string{"db.internal"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	expired := server
	expired.NotAfter = now.Add(-time.Minute)
	p.serverCert, p.serverKey = pair("server", &server)
	p.expiredCert, p.expiredKey = pair("expired", &expired)
	p.clientCert, p.clientKey = pair("client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return p
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
