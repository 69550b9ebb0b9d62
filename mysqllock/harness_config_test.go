package mysqllock_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
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
