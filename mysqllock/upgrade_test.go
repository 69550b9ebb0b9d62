package mysqllock_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// campaignV0 is the statement by which a candidate of v0 campaigned: parameters (election,
// candidate, time). It took an affected row for a won election.
const campaignV0 = "INSERT IGNORE INTO election_records (election_name, leader_name, last_update) VALUES (?, ?, ?)" +
	" ON DUPLICATE KEY UPDATE leader_name = IF(last_update < DATE_SUB(VALUES(last_update), INTERVAL 60 SECOND), VALUES(leader_name), leader_name)," +
	" last_update = IF(leader_name = VALUES(leader_name), VALUES(last_update), last_update)"

const dumpV0 = "SELECT id, election_name, leader_name, last_update FROM election_records ORDER BY id"

func TestUpgradeKeepsTheNewestRowOfEachElection(t *testing.T) {
	t.Parallel()
	want := freshDefinition(t)
	for _, c := range []struct {
		options string
		unicode bool
	}{
		{"DEFAULT CHARACTER SET latin1", false}, // latin1_swedish_ci takes Job for job and é for e
		{"DEFAULT CHARACTER SET latin1 ROW_FORMAT=COMPACT", false},
		{"DEFAULT CHARACTER SET utf8mb3 ROW_FORMAT=COMPACT", true},
		{"DEFAULT CHARACTER SET utf8mb4", true},
		{"DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci", true},
		{"ENGINE=MyISAM DEFAULT CHARACTER SET latin1", false},
	} {
		t.Run(c.options, func(t *testing.T) {
			config := newConfig(t)
			db := open(t, config)
			exec(t, db, v0Table+c.options)
			for i, r := range [][3]any{
				{"deploy", "d1", "2024-05-01 10:00:00"},
				{"deploy", "d2", "2024-05-01 10:00:05"},
				{"deploy", "d3", "2024-05-01 10:00:09.501"}, // the newest has neither the first nor the last id
				{"deploy", "d4", "2024-05-01 10:00:01"},
				{"deploy", "d5", "2024-05-01 10:00:09.5"},
				{"deploy", "d6", nil},
				{"backup", "b1", "2024-05-01 09:00:00"}, // equal: the later insert
				{"backup", "b2", "2024-05-01 09:00:00"},
				{"Job", "j1", "2024-05-01 08:00:00"},
				{"job", "j2", "2024-05-01 08:00:01"},
				{"JOB", "j3", "2024-05-01 07:00:00"},
				{"cafe", "c1", "2024-05-01 07:00:00"},
				{"café", "c2", "2024-05-01 07:00:00"},
				{"CAFÉ", "Zoë", "2024-05-01 07:00:00"},
				{"old", "o1", "1000-01-01 00:00:00"},
				{"old", "o2", nil}, // older than any
				{strings.Repeat("x", 255), strings.Repeat("y", 255), "2024-05-01 07:00:00"},
				{"released", "", "2024-05-01 07:00:00"},
				{"nobody", nil, "2024-05-01 07:00:00"},
			} {
				insertV0(t, db, i+1, r[0], r[1], r[2])
			}
			kept := []string{
				"CAFÉ|Zoë|2024-05-01 07:00:00.000000",
				"JOB|j3|2024-05-01 07:00:00.000000",
				"Job|j1|2024-05-01 08:00:00.000000",
				"backup|b2|2024-05-01 09:00:00.000000",
				"cafe|c1|2024-05-01 07:00:00.000000",
				"café|c2|2024-05-01 07:00:00.000000",
				"deploy|d3|2024-05-01 10:00:09.501000",
				"job|j2|2024-05-01 08:00:01.000000",
				"nobody||2024-05-01 07:00:00.000000",
				"old|o1|1000-01-01 00:00:00.000000",
				"released||2024-05-01 07:00:00.000000",
				strings.Repeat("x", 255) + "|" + strings.Repeat("y", 255) + "|2024-05-01 07:00:00.000000",
			}
			if c.unicode {
				insertV0(t, db, 30, "選挙", "候補者", "2024-05-01 07:00:00")
				kept = append(kept, "選挙|候補者|2024-05-01 07:00:00.000000")
			}
			short := strings.NewReplacer(strings.Repeat("x", 255), "x...", strings.Repeat("y", 255), "y...")
			t.Logf("before:\n%s", short.Replace(table(t, db, dumpV0)))

			if err := mysqllock.Migrate(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			after := table(t, db, "SELECT election_name, leader_name, last_update FROM election_records ORDER BY election_name")
			t.Logf("after:\n%s", short.Replace(table(t, db, "SELECT * FROM election_records ORDER BY election_name")))
			if diff := cmp.Diff(kept, strings.Split(after, "\n")); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(want, definition(t, db)); diff != "" {
				t.Errorf("an upgraded table differs from a fresh one: %s", diff)
			}
			if got := table(t, db, "SELECT DISTINCT leader_uid, lease_duration_seconds, acquire_time, renew_time, leader_transitions, strategy, preferred_holder, server, version FROM election_records"); got != "|60|NULL|NULL|0||||0" {
				t.Errorf("the new columns have %s", got)
			}
		})
	}
}

// v0 wrote a row with each try of each candidate: a table that was never emptied has millions.
func TestUpgradeOfALargeTableTakesFewStatements(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	admin := open(t, config)
	exec(t, admin, v0Table+"DEFAULT CHARACTER SET latin1")
	insertV0(t, admin, 1, "e", "a", "2024-05-01 10:00:00")
	insertV0(t, admin, 2, "f", "b", "2024-05-01 10:00:00")
	insertV0(t, admin, 3, "early", "c", "2034-05-01 10:00:00") // the newest, with nearly the smallest id
	for range 14 {
		exec(t, admin, "INSERT INTO election_records (election_name, leader_name, last_update)"+
			" SELECT election_name, leader_name, IF(election_name = 'early', '2024-05-01 10:00:00', last_update + INTERVAL 1 SECOND) FROM election_records")
	}
	exec(t, admin, "UPDATE election_records SET id = id + 18000000000000000000 WHERE id > 20000") // a gap that nothing may count through
	for i := range 200 {
		insertV0(t, admin, 1e9+i, fmt.Sprint("other ", i), "d", "2024-05-01 10:00:00")
	}
	rows := table(t, admin, "SELECT COUNT(*) FROM election_records")
	deletes := 0
	ended := errors.New("the time is over")
	db := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
		if strings.HasPrefix(query, "DELETE") {
			if deletes++; deletes == 3 {
				return ended
			}
		}
		return nil
	})
	if err := mysqllock.Migrate(t.Context(), db); !errors.Is(err, ended) {
		t.Fatal(err)
	}
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if rows != "49352" || deletes != 3+3 {
		t.Errorf("%s rows were upgraded by %d deletes, want 49352 and 6: one for each 10,000, and one that failed", rows, deletes)
	}
	want := "e|a|2024-05-01 10:00:14.000000\nearly|c|2034-05-01 10:00:00.000000\nf|b|2024-05-01 10:00:14.000000"
	if got := table(t, db, "SELECT election_name, leader_name, last_update FROM election_records WHERE leader_name <> 'd' ORDER BY election_name"); got != want {
		t.Errorf("kept:\n%s\nwant:\n%s", got, want)
	}
	if got := table(t, db, "SELECT COUNT(*) FROM election_records"); got != "203" {
		t.Errorf("%s elections are left of 203", got)
	}
}

func TestUpgradeOfAnEmptiedTable(t *testing.T) {
	t.Parallel()
	db := open(t, newConfig(t))
	exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
	insertV0(t, db, 1, "e", "a", "2024-05-01 10:00:00")
	exec(t, db, "TRUNCATE TABLE election_records")
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(freshDefinition(t), definition(t, db)); diff != "" {
		t.Errorf("an upgraded table differs from a fresh one: %s", diff)
	}
	takeOver(t, newLock(t, db, "e", "b"))
}

func TestUpgradeLetsALockGoOnWhereV0Stopped(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	db := open(t, config)
	exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
	insertV0(t, db, 1, "e", "old leader", "2024-05-01 10:00:00")
	insertV0(t, db, 2, "e", "older leader", "2024-05-01 09:00:00")
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	lock := newLock(t, db, "e", "new leader")
	got, _, err := lock.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.HolderIdentity != "old leader" || got.LeaseDurationSeconds != 60 {
		t.Errorf("the record is %+v", got)
	}
	if err := lock.Update(t.Context(), record("new leader")); err != nil {
		t.Fatal(err)
	}
	token, held := lock.FencingToken()
	if !held || token == 0 {
		t.Errorf("token %d, held %t", token, held)
	}
	e, err := mysqllock.GetElection(t.Context(), db, "e")
	if err != nil || e.Holder != "new leader" || e.FencingToken != token {
		t.Errorf("%+v %v", e, err)
	}
	if err := lock.Update(t.Context(), record("new leader")); err != nil {
		t.Errorf("renewal: %v", err)
	}
}

func TestUpgradeReportsANameThatDoesNotFitAndChangesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name             string
		election, leader any
		want             string
	}{
		{"256 characters", strings.Repeat("é", 256), "a", "election_name has 256 characters; shorten it to at most 255"},
		{"leader of 256 characters", "e", strings.Repeat("é", 256), "leader_name has 256 characters; shorten it to at most 255"},
		{"NULL", nil, "a", "election_name is empty; give it a name"},
		{"empty", "", "a", "election_name is empty; give it a name"},
		{"trailing space", "job ", "a", `election_name "job " begins or ends with a space; remove it`},
		{"leader with a leading space", "e", " a", `leader_name " a" begins or ends with a space; remove it`},
		{"line end", "job\n", "a", `election_name "job\n" has the control character U+000A; remove it`},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := newConfig(t)
			db := openDSN(t, config, "") // a plain pool: where a statement waits for ever, if it waits
			exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, db, 1, "fine", "a", "2024-05-01 10:00:00")
			insertV0(t, db, 2, "fine", "b", "2024-05-01 11:00:00")
			insertV0(t, db, 3, "unset", nil, nil)
			insertV0(t, db, 7, c.election, c.leader, "2024-05-01 09:00:00")
			before, rows := showCreate(t, db, "election_records"), table(t, db, dumpV0)
			err := mysqllock.Migrate(t.Context(), db)
			want := "mysqllock: migrate: election_records can't be upgraded because of its row with id 7: " + c.want + ", or delete the row; nothing was changed"
			if err == nil || err.Error() != want {
				t.Errorf("%v, not %q", err, want)
			}
			if diff := cmp.Diff(before, showCreate(t, db, "election_records")); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(rows, table(t, db, dumpV0)); diff != "" {
				t.Error(diff)
			}
			if got := tableNames(t, db); got != "election_records" {
				t.Errorf("tables: %s", got)
			}
			// No lock remains, and after the advice was taken it goes.
			other := open(t, config)
			exec(t, other, "DELETE FROM election_records WHERE id = 7")
			if err := mysqllock.Migrate(t.Context(), other); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUpgradeWithoutAlterLosesNoElectionAndKeepsNoLock(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	admin := open(t, config)
	exec(t, admin, v0Table+"DEFAULT CHARACTER SET latin1")
	insertV0(t, admin, 1, "e", "a", "2024-05-01 11:00:00")
	insertV0(t, admin, 2, "e", "b", "2024-05-01 10:00:00")
	db := open(t, newAccount(t, config, "SELECT, INSERT, UPDATE, DELETE, CREATE, LOCK TABLES ON {db}.*"))
	err := mysqllock.Migrate(t.Context(), db)
	if err == nil || !strings.Contains(err.Error(), "Error 1142 (42000): ALTER command denied") || !strings.Contains(err.Error(), "to upgrade an old table ALTER, DELETE, DROP and LOCK TABLES") {
		t.Fatal(err)
	}
	insertV0(t, admin, 3, "f", "a", "2024-05-01 10:00:00")
	if err := mysqllock.Migrate(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	if got := table(t, admin, "SELECT election_name, leader_name FROM election_records ORDER BY 1"); got != "e|a\nf|a" {
		t.Error(got)
	}
}

// v0 candidates go on writing while Migrate works: what they insert after their rows were read
// would be lost, or make the key impossible.
func TestUpgradeKeepsCandidatesOfV0Out(t *testing.T) {
	t.Parallel()
	config := newConfig(t)
	v0 := openDSN(t, config, "interpolateParams=true")
	exec(t, v0, v0Table+"DEFAULT CHARACTER SET latin1")
	campaign := func(ctx context.Context, election, candidate string) (won bool, err error) {
		result, err := v0.ExecContext(ctx, campaignV0, election, candidate, time.Now().UTC().Format("2006-01-02 15:04:05.000"))
		if err != nil {
			return false, err
		}
		n, err := result.RowsAffected()
		return n > 0, err
	}
	leaders := 0
	for _, candidate := range []string{"a", "b", "c"} {
		won, err := campaign(t.Context(), "e", candidate)
		if err != nil {
			t.Fatal(err)
		}
		if won {
			leaders++
		}
	}
	if rows := table(t, v0, "SELECT COUNT(*) FROM election_records"); leaders != 3 || rows != "3" {
		t.Fatalf("v0 elected %d of 3 candidates and made %s rows; this test is about one that elects all", leaders, rows)
	}

	ctx, stop := context.WithCancel(t.Context())
	var writes atomic.Int64
	var writers sync.WaitGroup
	for i := range 6 {
		writers.Add(1)
		go func() {
			defer writers.Done()
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := campaign(ctx, fmt.Sprint("e", n%3), fmt.Sprint("candidate", i)); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
				writes.Add(1)
			}
		}()
	}
	defer writers.Wait()
	defer stop()
	eventually(t, 20*time.Second, "v0 writes", func() bool { return writes.Load() > 100 })

	altered := false
	db := hookedPool(t, config, func(query string, _ []driver.NamedValue) error {
		if strings.HasPrefix(query, "ALTER TABLE") {
			altered = true
			// All rows were read: nobody may add one.
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			if _, err := campaign(ctx, "e", "late"); err == nil {
				t.Error("a candidate of v0 wrote between the reading of the rows and the ALTER")
			}
		}
		return nil
	})
	if err := mysqllock.Migrate(t.Context(), db); err != nil {
		t.Error(err)
	}
	if !altered {
		t.Error("the table was not altered through the pool that watches")
	}
	after := writes.Load()
	eventually(t, 20*time.Second, "v0 writes again", func() bool { return writes.Load() > after+100 })
	stop()
	writers.Wait()
	if got := table(t, open(t, config), "SELECT election_name, COUNT(*) FROM election_records GROUP BY 1 ORDER BY 1"); got != "e|1\ne0|1\ne1|1\ne2|1" {
		t.Errorf("rows per election:\n%s", got)
	}
}

// Settings of the session that refuse an upgrade's statements, or cut what they read, would leave
// it half done, or take a name for checked that wasn't.
func TestUpgradeWorksWhateverTheSessionLimits(t *testing.T) {
	t.Parallel()
	// Fewer rows than v0 left, and enough for the columns of a table.
	const rows, limit = 60, 30
	for _, parameters := range []string{"sql_safe_updates=1", fmt.Sprint("sql_select_limit=", limit)} {
		t.Run(parameters, func(t *testing.T) {
			config := newConfig(t)
			db := open(t, config)
			exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, db, rows+1, "f", "old", nil)
			for i := range rows {
				insertV0(t, db, i+1, "e", fmt.Sprint("holder ", i), fmt.Sprintf("2024-05-01 10:00:%02d", i))
			}
			if err := mysqllock.Migrate(t.Context(), openDSN(t, config, parameters)); err != nil {
				t.Fatal(err)
			}
			for election, holder := range map[string]string{"e": fmt.Sprint("holder ", rows-1), "f": "old"} {
				if got := holderOf(t, db, election); got != holder {
					t.Errorf("%s is held by %q, want %q", election, got, holder)
				}
			}
		})
		t.Run(parameters+", a name that does not fit", func(t *testing.T) {
			config := newConfig(t)
			db := open(t, config)
			exec(t, db, v0Table+"DEFAULT CHARACTER SET latin1")
			insertV0(t, db, 1, strings.Repeat("x", 256), "a", "2024-05-01 10:00:00")
			for i := range rows {
				insertV0(t, db, i+2, fmt.Sprint("e", i), "a", "2024-05-01 10:00:01")
			}
			err := mysqllock.Migrate(t.Context(), openDSN(t, config, parameters+"&sql_mode=''"))
			if err == nil || !strings.Contains(err.Error(), "row with id 1") {
				t.Errorf("error %v", err)
			}
		})
	}
}
