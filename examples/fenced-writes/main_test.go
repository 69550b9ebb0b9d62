package main

import (
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestACommitAfterAPauseIsRefused(t *testing.T) {
	t.Parallel()
	refused(t, `a was refused: mysqllock: transact "default/ledger": `)
}

func TestAStatementAfterAPauseChangesNothing(t *testing.T) {
	t.Parallel()
	refused(t, "a was refused: not the leader: the statement changed no row", "-statement")
}

func refused(t *testing.T, refusal string, flags ...string) {
	t.Helper()
	db := exampletest.NewDatabase(t)
	a := exampletest.Start(t, "a", db.Env, nil, append(flags, "-id=a", "-pause=8s")...)
	a.Prints(t, "a leads with fencing token", 1)
	b := exampletest.Start(t, "b", db.Env, nil, append(flags, "-id=b")...)
	a.Prints(t, "a stands still", 1)
	b.Prints(t, "b leads with fencing token", 1)
	b.Prints(t, "b posted entry 3", 1)
	a.Prints(t, refusal, 1)
	a.Prints(t, "leadership was lost", 1)
	if code := a.Ends(t); code != 1 {
		t.Errorf("exit code %d", code)
	}
	b.Prints(t, "b posted entry", 3)

	// Entries 1 and 2 are a's, all later ones b's.
	rows, err := db.QueryContext(t.Context(), `SELECT entry, author FROM ledger ORDER BY entry`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var entry int
		var author string
		if err := rows.Scan(&entry, &author); err != nil {
			t.Fatal(err)
		}
		n++
		if want := map[bool]string{true: "a", false: "b"}[entry <= 2]; author != want || entry != n {
			t.Errorf("entry %d is %s's and has the number %d", n, author, entry)
		}
	}
	if err := rows.Err(); err != nil || n < 5 {
		t.Errorf("%d entries (%v)", n, err)
	}
}
