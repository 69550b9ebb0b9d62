package main

// The faults that report when they have done what they are for; see hit.
const (
	commitLost      = "reply to COMMIT lost, and the session"
	writeLost       = "reply to a write lost, and the session"
	transactionLeft = "transaction left open in the candidate's pool"
)

var telling = []string{commitLost, writeLost, transactionLeft}

// enough injections of a fault hit something, whoever they fall upon: the leader is hit by every other.
const enough = 15

// idle finds the faults that never did what they are for.
func (v *verdict) idle(events []event) {
	injected, hits := map[string]int{}, map[string]int{}
	for _, e := range events {
		switch e.Kind {
		case fault:
			injected[e.What]++
		case hit:
			hits[e.What]++
		}
	}
	for _, what := range telling {
		if injected[what] >= enough && hits[what] == 0 {
			v.add(events[len(events)-1].Time, nil, "a fault has hit nothing in %d times: %s", injected[what], what)
		}
	}
}
