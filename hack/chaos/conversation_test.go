package main

import (
	"encoding/binary"
	"slices"
	"testing"
)

// packet is one of the protocol.
func packet(command byte, body string) []byte {
	n := len(body) + 1
	return append([]byte{byte(n), byte(n >> 8), byte(n >> 16), 0, command}, body...)
}

func number(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }

func TestTheReplyToAStatementIsLostHoweverItWasSent(t *testing.T) {
	t.Parallel()
	lose := loss{to: "UPDATE", why: writeLost}
	const closed = 25 // a statement, which nobody answers
	for name, c := range map[string]struct {
		loss          loss
		first, second []byte // sent, each with an answer
		lost          bool   // the second answer is
	}{
		"as text":                         {lose, packet(sendText, "SELECT 1"), packet(sendText, "UPDATE t"), true},
		"another text":                    {lose, packet(sendText, "SELECT 1"), packet(sendText, "SELECT 'UPDATE'"), false},
		"as text, and nothing is to be":   {loss{}, packet(sendText, "SELECT 1"), packet(sendText, "UPDATE t"), false},
		"as prepared":                     {lose, packet(sendToPrepare, "UPDATE t"), packet(sendAsPrepared, number(7)), true},
		"as prepared, after others":       {lose, packet(sendToPrepare, "UPDATE t"), slices.Concat(packet(closed, number(6)), packet(sendAsPrepared, number(7))), true},
		"another of what was prepared":    {lose, packet(sendToPrepare, "UPDATE t"), packet(sendAsPrepared, number(8)), false},
		"a prepared one of other text":    {lose, packet(sendToPrepare, "SELECT 1"), packet(sendAsPrepared, number(7)), false},
		"while it is prepared, it is not": {lose, packet(sendText, "SELECT 1"), packet(sendToPrepare, "UPDATE t"), false},
	} {
		var said conversation
		said.request(c.loss, c.first)
		if why := said.answer(packet(0, number(7))); why != "" {
			t.Errorf("%s: the first answer is lost: %s", name, why)
		}
		said.request(c.loss, c.second)
		if why := said.answer(packet(0, "")); (why == writeLost) != c.lost || !c.lost && why != "" {
			t.Errorf("%s: %q, want lost %t", name, why, c.lost)
		}
		if why := said.answer(packet(0, "")); why != "" {
			t.Errorf("%s: the third answer is lost: %s", name, why)
		}
	}
}
