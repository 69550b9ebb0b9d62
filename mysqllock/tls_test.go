package mysqllock_test

import (
	"bytes"
	"context"
	"database/sql"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

func TestTLSPreferredIsUsedAgainAfterAServerWithoutTLS(t *testing.T) {
	// The driver drops TLS from its config when a server has none, for all connections to come;
	// with the race detector this also finds that it does so without a lock.
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

// An account that requires TLS, and everything that the environment can say about TLS: what is
// refused is refused with the reason, and gets no further.
func TestTLSServesAnAccountThatRequiresItOnlyWithTheRightCA(t *testing.T) {
	pki, other := newPKI(t), newPKI(t)
	server, config := ownServer(t, "--ssl-ca="+pki.ca, "--ssl-cert="+pki.serverCert, "--ssl-key="+pki.serverKey)
	s := &realServer{Server: server, pki: pki, admin: open(t, server.Config()), database: config.DBName}
	mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), open(t, s.config())) })

	const (
		denied    = `Error 1045 (28000): Access denied for user '{user}'@'...' (using password: YES); check the user and its password (MYSQL_USER, MYSQL_PASSWORD), and whether the account requires TLS (MYSQL_TLS) or a certificate (MYSQL_TLS_CERT)`
		unknownCA = `tls: failed to verify certificate: x509: certificate signed by unknown authority*; name the authority that signed the server's certificate in the TLS configuration (MYSQL_TLS_CA)`
		wrongName = `tls: failed to verify certificate: the server's certificate is not for the host name that was dialled; name the server as its certificate does (MYSQL_TLS_SERVER_NAME)`
	)
	ours := map[string]string{"MYSQL_TLS_CERT": pki.clientCert, "MYSQL_TLS_KEY": pki.clientKey}
	theirs := map[string]string{"MYSQL_TLS_CERT": other.clientCert, "MYSQL_TLS_KEY": other.clientKey}
	for user, how := range map[string]string{"with_tls": "REQUIRE SSL", "with_certificate": "REQUIRE X509"} {
		base := environment(t, s.account(t, user, "IDENTIFIED BY {password} "+how))
		for _, test := range []struct {
			name        string
			variables   map[string]string
			certificate map[string]string // that of the client
			want        string            // the error; * for any words of the server or of the standard library
		}{
			{"no TLS", nil, nil, denied},
			{"TLS switched off", map[string]string{"MYSQL_TLS": "false"}, nil, denied},
			{"the system's CAs", map[string]string{"MYSQL_TLS": "true"}, ours, unknownCA},
			{"another CA", map[string]string{"MYSQL_TLS_CA": other.ca}, ours, unknownCA},
			{"not a name of the server", map[string]string{"MYSQL_TLS_CA": pki.ca, "MYSQL_TLS_SERVER_NAME": "other.internal"}, ours, wrongName},
			{"the right CA", map[string]string{"MYSQL_TLS_CA": pki.ca}, ours, ""},
			{"the right CA and another name of the server", map[string]string{"MYSQL_TLS_CA": pki.ca, "MYSQL_TLS_SERVER_NAME": "db.internal"}, ours, ""},
			{"the right CA without a certificate", map[string]string{"MYSQL_TLS_CA": pki.ca}, nil, map[string]string{"with_certificate": denied}[user]},
			{"the right CA and a certificate of another CA", map[string]string{"MYSQL_TLS_CA": pki.ca}, theirs, "*"},
		} {
			t.Run(how+", "+test.name, func(t *testing.T) {
				cipher, err := connect(t, base, test.variables, test.certificate)
				prefix, suffix, _ := strings.Cut(`mysqllock: get "e": `+strings.ReplaceAll(test.want, "{user}", user), "*")
				switch {
				case test.want == "" && (err != nil || cipher == ""):
					t.Errorf("cipher %q, error %v", cipher, err)
				case test.want == "":
				case err == nil:
					t.Error("was served")
				case !strings.HasPrefix(err.Error(), prefix) || !strings.HasSuffix(err.Error(), suffix):
					t.Errorf("\n got %v\nwant %s*%s", err, prefix, suffix)
				case strings.Contains(err.Error(), password) || strings.Contains(err.Error(), base["MYSQL_PORT"]) || strings.Contains(err.Error(), "127.0.0.1") || strings.Contains(err.Error(), "internal"):
					t.Errorf("shows too much: %v", err)
				}
				if test.want == "" {
					// All else by the same configuration.
					config, err := mysqllock.ConfigFromEnv()
					if err != nil {
						t.Fatal(err)
					}
					db := open(t, config)
					mustSucceed(t, "Migrate", func() error { return mysqllock.Migrate(t.Context(), db) })
					takeOver(t, newLock(t, db, user+test.name, "a"))
					if found := findings(t, db, mysqllock.SeverityError); len(found) > 0 {
						t.Errorf("Preflight found %v", found)
					}
				}
			})
		}
	}
}

func TestTLSRefusesAServersExpiredCertificateWithTheReason(t *testing.T) {
	pki := newPKI(t)
	_, config := ownServer(t, "--ssl-ca="+pki.ca, "--ssl-cert="+pki.expiredCert, "--ssl-key="+pki.expiredKey)
	_, err := connect(t, environment(t, config), map[string]string{"MYSQL_TLS_CA": pki.ca})
	want := regexp.MustCompile(`^mysqllock: get "e": tls: failed to verify certificate: x509: certificate has expired or is not yet valid: ` +
		`current time \S+ is after 20\S+; renew the server's certificate, or set this machine's clock$`)
	if err == nil || !want.MatchString(err.Error()) {
		t.Errorf("error %v", err)
	}
}

// wiretap keeps what a client sends.
type wiretap struct {
	net.Conn
	mu   *sync.Mutex
	sent *bytes.Buffer
}

func (c wiretap) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent.Write(b)
	return c.Conn.Write(b)
}

// Who sits in between can say that the server has no TLS.
func TestTLSOfMYSQL_TLSNeverFallsBackToPlainText(t *testing.T) {
	for _, mode := range []string{"true", "skip-verify"} {
		t.Run(mode, func(t *testing.T) {
			setEnv(t, minimal(), map[string]string{"MYSQL_TLS": mode})
			config, err := mysqllock.ConfigFromEnv()
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var sent bytes.Buffer
			fake := &fakeServer{plugin: "mysql_clear_password"}
			config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := fake.dial(ctx, network, address)
				return wiretap{conn, &mu, &sent}, err
			}
			config.AllowCleartextPasswords = true // the worst case
			_, _, err = newLock(t, open(t, config), "e", "a").Get(t.Context())
			if want := `mysqllock: get "e": TLS requested but server does not support TLS`; err == nil || err.Error() != want {
				t.Errorf("\n got %v\nwant %s", err, want)
			}
			mu.Lock()
			defer mu.Unlock()
			if sent.Len() > 0 {
				t.Errorf("sent %q", sent.Bytes())
			}
		})
	}
}
