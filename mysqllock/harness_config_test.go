package mysqllock_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"

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

// fakeServer greets with an authentication plugin and says OK to all that follows. It hangs up when
// it is asked for TLS.
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

// account makes an account that may do what a lock does, and returns its configuration. how is what
// follows its name in CREATE USER, with {password}.
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

// connect opens a pool for an environment and reads an election that is not there: the error is
// what a lock says. Also the session's cipher.
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
		// An account for each way: caching_sha2_password takes another path, and needs no RSA key,
		// once the server has the password in its cache.
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
