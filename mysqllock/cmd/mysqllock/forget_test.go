package main

import (
	"strings"
	"testing"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// has reports how many rows of an election there are in the two tables.
func (d *database) has(t *testing.T, election string) (records, fences int) {
	t.Helper()
	err := d.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM election_records WHERE election_name = ?), (SELECT COUNT(*) FROM election_fences WHERE election_name = ?)`,
		election, election).Scan(&records, &fences)
	if err != nil {
		t.Fatal(err)
	}
	return records, fences
}

// mustHave wants so many rows of an election, and its fence row.
func (d *database) mustHave(t *testing.T, election string, records int) {
	t.Helper()
	if r, f := d.has(t, election); r != records || f != 1 {
		t.Errorf("%d rows and %d fences of %s, not %d and 1", r, f, election, records)
	}
}

func TestForgetDeletesWhatNobodyHolds(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	for _, name := range append([]string{"shop/mail", "' OR 1=1 -- "[:11]}, hostile...) {
		other := db.lead(t, "other "+name, "a", 15)
		lock := db.lead(t, name, "worker-1", 15)
		before, _ := lock.FencingToken()
		db.release(t, lock)
		do(t, db.env, "forget", name).is(t, 0, " is forgotten; its row in election_fences stays", "")
		db.mustHave(t, name, 0)
		db.mustHave(t, "other "+name, 1)
		db.release(t, other)
		// The next term's token is larger.
		if after, held := db.lead(t, name, "worker-2", 15).FencingToken(); !held || after <= before {
			t.Errorf("the token is %d after %d", after, before)
		}
	}
	do(t, db.env, "forget", "no such").is(t, exitRefused, "", `there is no election "no such" in this database; mysqllock list shows`)
}

func TestForgetRefusesWhatSomebodyHolds(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.lead(t, "e", "worker-1", 15)
	for _, args := range [][]string{{"e"}, {"e", "-expired"}} {
		do(t, db.env, append([]string{"forget"}, args...)...).is(t, exitRefused, "", `it is held by "worker-1", who renewed `)
	}
	db.silent(t, "e", 100) // between one and ten leases
	do(t, db.env, "forget", "e").is(t, exitRefused, "", "if the leader is gone for good, give -expired")
	do(t, db.env, "forget", "e", "-expired").is(t, exitRefused, "", "a leader counts as gone after ten leases without a renewal, 2m 30s")
	db.mustHave(t, "e", 1)
	db.silent(t, "e", 200)
	do(t, db.env, "forget", "e").is(t, exitRefused, "", "give -expired")
	db.mustHave(t, "e", 1)
	do(t, db.env, "forget", "e", "-expired").is(t, 0, "e is forgotten", "")
	db.mustHave(t, "e", 0)
}

func TestForgetNeedsDELETE(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.release(t, db.lead(t, "e", "a", 15))
	r := do(t, db.as(t, "SELECT, INSERT, UPDATE"), "forget", "e")
	r.is(t, exitFailed, "", "the account may not delete; GRANT DELETE ON election_records to it")
	do(t, db.as(t, "SELECT, DELETE"), "forget", "e").is(t, 0, "e is forgotten", "")
}

func TestForgetSparesWhoTakesOverMeanwhile(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	for _, expired := range []bool{false, true} {
		lock := db.lead(t, "e", "worker-1", 15)
		if expired {
			db.silent(t, "e", 1000)
		} else {
			db.release(t, lock)
		}
		// A takeover that is not committed yet: the command reads the row as it was, and waits for it.
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.ExecContext(t.Context(), "UPDATE election_records SET leader_name = 'worker-2', leader_uid = 'u', version = version + 1, last_update = UTC_TIMESTAMP(6) WHERE election_name = 'e'"); err != nil {
			t.Fatal(err)
		}
		config := db.config.Clone()
		config.Params = map[string]string{"innodb_lock_wait_timeout": "50"}
		p := start(t, nil, nil, "forget", "-dsn", writeFile(t, config.FormatDSN()), "e", "-expired")
		eventually(t, "it waits for the row", func() bool {
			var waiting int
			err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'DELETE FROM election_records%'").Scan(&waiting)
			if err != nil {
				t.Fatal(err)
			}
			return waiting == 1
		})
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if code := p.ends(t); code != exitRefused || !strings.Contains(p.stderr.String(), `it is held by "worker-2"`) {
			t.Errorf("exit code %d: %s %s", code, p.stdout.String(), p.stderr.String())
		}
		if e, err := mysqllock.GetElection(t.Context(), db.DB, "e"); err != nil || e.Holder != "worker-2" {
			t.Errorf("%+v %v", e, err)
		}
		db.exec(t, "DELETE FROM election_records")
	}
}

func TestForgetGivesUpOnALockedRow(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	db.release(t, db.lead(t, "e", "a", 15))
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), "SELECT 1 FROM election_records WHERE election_name = 'e' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	do(t, db.env, "forget", "e").is(t, exitFailed, "", "another session holds the row locked; try again")
}
