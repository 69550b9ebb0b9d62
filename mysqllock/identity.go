package mysqllock

import (
	"crypto/rand"
	"encoding/hex"
	"net"
	"os"
	"strconv"
	"strings"
)

// NewIdentity makes an identity for this candidate that no other has, such as
//
//	worker-7d4b9_0242ac110002_1_4QKBXOLM3H7GRWYZ2N5TJ6DVCE
//
// from the hostname, the MAC address of the first network interface that has one, the process id
// and 128 random bits. The first three are for the person who looks for the leader; the random part
// is what makes two candidates different, as containers may share hostname, MAC address and process
// id.
//
// Each call returns another identity: make one per candidate, at its start, and keep it. An
// identity that survives a restart (the name of a StatefulSet's pod) has to be chosen by hand.
func NewIdentity() string {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = ""
	}
	return composeIdentity(hostname, firstMAC(), os.Getpid(), rand.Text())
}

// composeIdentity joins the parts of an identity by "_" and leaves a MAC address of no bytes out.
// Characters of the hostname other than ASCII letters, digits, ".", "_" and "-" become "-":
// validateName accepts the result, and it is the same in every character set that a session can
// have. The hostname alone is cut.
//
// The MAC address has no colons, as "host_02:42" is what publicText takes for the address of a
// server.
func composeIdentity(hostname string, mac net.HardwareAddr, pid int, random string) string {
	suffix := "_" + strconv.Itoa(pid) + "_" + random
	if len(mac) > 0 {
		suffix = "_" + hex.EncodeToString(mac) + suffix
	}
	if hostname == "" {
		hostname = "unknown"
	}
	hostname = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, hostname)
	return hostname[:min(len(hostname), maxNameLength-len(suffix))] + suffix
}

// firstMAC is the MAC address of the network interface with the lowest index that is no loopback
// and has one; nil if there is none or it can't be found out.
func firstMAC() net.HardwareAddr {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var first net.Interface
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) > 0 && (first.HardwareAddr == nil || i.Index < first.Index) {
			first = i
		}
	}
	return first.HardwareAddr
}
