package mysqllock

import (
	"crypto/rand"
	"database/sql"
	"net"
	"regexp"
	"strings"
	"testing"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"pgregory.net/rapid"
)

func TestIdentityNeverRepeats(t *testing.T) {
	// In one process hostname, MAC address and PID are the same, as they are in containers that
	// share them: the random part has to do it alone.
	const n = 10_000
	seen := make(map[string]bool, n)
	for range n {
		identity := NewIdentity()
		if err := validateName("identity", identity, maxNameLength); err != nil {
			t.Fatalf("%s: %v", identity, err)
		}
		if seen[identity] {
			t.Fatalf("%s came twice", identity)
		}
		seen[identity] = true
	}
}

func TestIdentityIsAcceptedByNew(t *testing.T) {
	identity := NewIdentity()
	if want := regexp.MustCompile(`^[A-Za-z0-9._-]+(_[0-9a-f]+)?_[0-9]+_[A-Z2-7]{26}$`); !want.MatchString(identity) {
		t.Errorf("%s doesn't match %s", identity, want)
	}
	config := resourcelock.ResourceLockConfig{Identity: identity}
	if _, err := New(new(sql.DB), "election", config); err != nil {
		t.Error(err)
	}
}

func TestIdentityIsMadeOfAnyHostname(t *testing.T) {
	const random = "4QKBXOLM3H7GRWYZ2N5TJ6DVCE"
	mac := net.HardwareAddr{0x02, 0x42, 0xac, 0x11, 0x00, 0x02}
	infiniband := net.HardwareAddr(strings.Repeat("\xfe", 20))
	for _, test := range []struct {
		name, hostname string
		mac            net.HardwareAddr
		want           string
	}{
		{"a usual one", "worker-7d4b9", mac, "worker-7d4b9_0242ac110002_7_" + random},
		{"without a MAC address", "worker-7d4b9", nil, "worker-7d4b9_7_" + random},
		{"unknown", "", mac, "unknown_0242ac110002_7_" + random},
		{"underscores and dots", "my_app.example.org", nil, "my_app.example.org_7_" + random},
		{"spaces only", "   ", nil, "---_7_" + random},
		{"a space at either end", " a ", nil, "-a-_7_" + random},
		{"control characters", "a\x00b\nc\x7f", nil, "a-b-c-_7_" + random},
		{"not UTF-8", "a\xff\xfeb", nil, "a--b_7_" + random},
		{"a part of a character", "a\xe2\x82", nil, "a--_7_" + random},
		{"non-ASCII", "größe-東", nil, "gr--e--_7_" + random},
		{"quotes", "a'b\"c\\d`e", nil, "a-b-c-d-e_7_" + random},
		{"an address", "fe80::1%eth0", nil, "fe80--1-eth0_7_" + random},
		{"too long", strings.Repeat("h", 300), mac, strings.Repeat("h", 255-42) + "_0242ac110002_7_" + random},
		{"too long non-ASCII", strings.Repeat("東", 300), mac, strings.Repeat("-", 255-42) + "_0242ac110002_7_" + random},
		{"too long with the longest MAC address", strings.Repeat("h", 300), infiniband, strings.Repeat("h", 255-69-1) + "_" + strings.Repeat("fe", 20) + "_7_" + random},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := composeIdentity(test.hostname, test.mac, 7, random)
			if got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if err := validateName("identity", got, maxNameLength); err != nil {
				t.Error(err)
			}
		})
	}
}

// FuzzIdentity checks that every machine has an identity, which New accepts and
// whose random part is whole.
func FuzzIdentity(f *testing.F) {
	for _, hostname := range []string{"", "worker-7d4b9", " a ", "a\x00b\nc", "\xff", "größe-東", "a'b\"c\\d`e", strings.Repeat("h", 300), strings.Repeat("東", 300)} {
		f.Add(hostname, []byte{2, 0x42, 0xac, 0x11, 0, 2}, 7)
		f.Add(hostname, []byte(nil), 1<<31-1)
	}
	f.Fuzz(func(t *testing.T, hostname string, mac []byte, pid int) {
		checkIdentity(t, hostname, mac[:min(len(mac), 32)], pid, rand.Text())
	})
}

func TestIdentityIsAlwaysValidAndKeepsItsRandomPart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hostname := string(rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "hostname"))
		mac := net.HardwareAddr(rapid.SliceOfN(rapid.Byte(), 0, 32).Draw(t, "mac")) // 32: the longest of Linux
		pid := rapid.IntRange(1, 1<<31-1).Draw(t, "pid")
		random := rapid.StringMatching(`[A-Z2-7]{26}`).Draw(t, "random")
		checkIdentity(t, hostname, mac, pid, random)
	})
}

func checkIdentity(t rapid.TB, hostname string, mac net.HardwareAddr, pid int, random string) {
	t.Helper()
	identity := composeIdentity(hostname, mac, pid, random)
	if err := validateName("identity", identity, maxNameLength); err != nil {
		t.Error(err)
	}
	if !strings.HasSuffix(identity, "_"+random) {
		t.Errorf("%q doesn't end with the random part %s", identity, random)
	}
	if !isASCII(identity) {
		t.Errorf("%q is not ASCII", identity)
	}
}

func TestIdentityIsReadableInErrors(t *testing.T) {
	// A MAC address with colons would be taken for a server's address.
	identity := composeIdentity("worker-1", net.HardwareAddr{2, 0x42, 0xac, 0x11, 0, 2}, 7, "RANDOM")
	err := &opError{op: "update", cause: &opError{op: "held by " + identity, cause: ErrNotLeader}}
	if !strings.Contains(err.Error(), identity) {
		t.Errorf("%q is not in %q", identity, err)
	}
}
