package main

import (
	"encoding/binary"
	"strings"
	"sync"
)

// conversation is what the proxy makes of the packets of one connection.
type conversation struct {
	mu        sync.Mutex
	preparing string            // the statement that was last to be prepared, until there is an answer
	prepared  map[uint32]string // by their numbers
	doomed    string            // why the next answer is lost, and the connection with it
}

// A packet's head is four bytes, with its length in three of them. The next is the command.
const (
	headLength     = 4
	sendText       = 3
	sendToPrepare  = 22
	sendAsPrepared = 23
)

// request looks at what a client sends: one packet, or some, as nobody answers that a statement is closed.
func (c *conversation) request(l loss, packets []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(packets) > headLength {
		length := int(packets[0]) | int(packets[1])<<8 | int(packets[2])<<16
		end := min(headLength+length, len(packets))
		if end == headLength {
			return
		}
		command, body := packets[headLength], packets[headLength+1:end]
		packets = packets[end:]
		statement := ""
		switch {
		case command == sendText:
			statement = string(body)
		case command == sendToPrepare:
			c.preparing = string(body)
		case command == sendAsPrepared && len(body) >= 4:
			statement = c.prepared[binary.LittleEndian.Uint32(body)]
		}
		if l.to != "" && strings.HasPrefix(statement, l.to) {
			c.doomed = l.why
		}
	}
}

// answer looks at what the server sends, and returns why that is lost, if it is.
func (c *conversation) answer(packet []byte) (why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.preparing != "" && len(packet) >= headLength+5 {
		if c.prepared == nil {
			c.prepared = map[uint32]string{}
		}
		if packet[headLength] == 0 { // it is prepared, as this number
			c.prepared[binary.LittleEndian.Uint32(packet[headLength+1:])] = c.preparing
		}
		c.preparing = ""
	}
	why, c.doomed = c.doomed, ""
	return why
}
