package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What v0 of this library did: parameters (election, candidate, time), and then a read of who leads. Its table had no
// unique key, so that each campaign left one more row; measured is the statement as it was meant, with the key.
const (
	v0Table = `CREATE TABLE v0_records (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT, election_name VARCHAR(255) NULL,` +
		` leader_name VARCHAR(256) NULL, last_update DATETIME(3) NULL, PRIMARY KEY (id), UNIQUE KEY (election_name)) ENGINE=InnoDB DEFAULT CHARACTER SET latin1`
	v0Campaign = `INSERT IGNORE INTO v0_records (election_name, leader_name, last_update) VALUES (?, ?, ?)` +
		` ON DUPLICATE KEY UPDATE leader_name = IF(last_update < DATE_SUB(VALUES(last_update), INTERVAL 60 SECOND), VALUES(leader_name), leader_name),` +
		` last_update = IF(leader_name = VALUES(leader_name), VALUES(last_update), last_update)`
	v0Read = `SELECT leader_name FROM v0_records WHERE election_name = ?`
)

// What a lock of the server's own needs: a session that holds it, which asks whether it still does, and followers that
// ask for it.
const (
	takeServerLock = `SELECT GET_LOCK(?, 0)`
	keepServerLock = `SELECT IS_USED_LOCK(?) = CONNECTION_ID()`
)

func runRivals(ctx context.Context, b *bench, s *section) error {
	const most = 8
	if _, err := b.admin.ExecContext(ctx, v0Table); err != nil {
		return err
	}
	etcd, err := startChild(ctx, childConfig{Etcd: true})
	if err != nil {
		return err
	}
	defer etcd.kill()
	endpoint, err := etcd.line(ctx)
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: opTimeout})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // nothing to lose

	s.printf(`The first line of each table is this lock. Beside it, on the same server: v0's statement with its second read (with the
unique key that its table lacked), and GET_LOCK, whose holder and each of whose followers keep a connection, which writes
nothing, and which a holder's broken connection or a restarted server ends. And a single embedded etcd with fsync, in a process of its
own on the same disk, by its client: the compare-and-swap of a key, and a linearizable read. That is what a Lease costs before
any API server, which adds authentication, admission, conversion and a round trip. Its CPU is etcd's.
`)
	for _, kind := range []string{"Renewal", "Poll"} {
		s.printf("\n### %s\n\n", kind)
		r := comparisons{per: "caller", bars: bars{title: kind + " against rivals", y: "p50, ratio to this lock"}}
		err := b.sweep(ctx, s, "rivals-"+kind, r, []int{1, most}, func(callers int) ([]arm, func(), error) {
			return rivalArms(ctx, b, kind, callers, client, processes{etcd.PID()})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func rivalArms(ctx context.Context, b *bench, kind string, callers int, client *clientv3.Client, etcdProcesses processes) (_ []arm, _ func(), err error) {
	pool, err := b.open(ctx, callers, true)
	if err != nil {
		return nil, nil, err
	}
	done := func() { _ = pool.Close() }
	defer func() {
		if err != nil {
			done()
		}
	}()
	name := fmt.Sprintf("rival-%s-%d", kind, callers)
	arms := []arm{{"this lock", nil, b.processes}, {"v0's statement and read", nil, b.processes}, {"GET_LOCK", nil, b.processes}, {"etcd", nil, etcdProcesses}}

	poll := kind == "Poll"
	renew, err := renewals(ctx, pool, name, callers)
	if err != nil {
		return nil, nil, err
	}
	if arms[0].op = renew; poll {
		if arms[0].op, err = polls(pool, name, callers); err != nil {
			return nil, nil, err
		}
	}

	candidate := leaderName
	arms[1].op = func(ctx context.Context, caller int) error {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		// A follower's clock is ahead by nothing, so it changes no row.
		_, err := pool.ExecContext(ctx, v0Campaign, electionOf(name, caller), candidate, time.Now().UTC().Format("2006-01-02 15:04:05.000"))
		if err != nil {
			return err
		}
		var leader string
		return pool.QueryRowContext(ctx, v0Read, electionOf(name, caller)).Scan(&leader)
	}
	if poll {
		for caller := range callers {
			if err := arms[1].op(ctx, caller); err != nil {
				return nil, nil, err
			}
		}
		candidate = followerName
	}

	// The holders' sessions, and for polls the followers'.
	var holders, followers []*sql.Conn
	holding, err := b.open(ctx, 2*callers, true)
	if err != nil {
		return nil, nil, err
	}
	done = func() {
		for _, conn := range append(holders, followers...) {
			_ = conn.Close()
		}
		_, _ = holding.Close(), pool.Close()
	}
	for caller := range callers {
		for _, to := range []*[]*sql.Conn{&holders, &followers} {
			conn, err := holding.Conn(ctx)
			if err != nil {
				return nil, nil, err
			}
			*to = append(*to, conn)
		}
		if got, err := ask(ctx, holders[caller], takeServerLock, electionOf(name, caller)); err != nil || !got {
			return nil, nil, errors.Join(err, errors.New("GET_LOCK did not give a lock that nobody has"))
		}
	}
	arms[2].op = func(ctx context.Context, caller int) error {
		conn, statement := holders[caller], keepServerLock
		if poll {
			conn, statement = followers[caller], takeServerLock
		}
		if got, err := ask(ctx, conn, statement, electionOf(name, caller)); err != nil || got == poll {
			return errors.Join(err, fmt.Errorf("%s said %t", statement, got))
		}
		return nil
	}

	revisions := make([]int64, callers)
	put := func(ctx context.Context, caller int) error {
		ctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		value, err := json.Marshal(record())
		if err != nil {
			return err
		}
		key := electionOf(name, caller)
		answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revisions[caller])).
			Then(clientv3.OpPut(key, string(value))).Commit()
		if err != nil {
			return err
		}
		if !answer.Succeeded {
			return errors.New("lost a compare-and-swap that nobody else wanted")
		}
		revisions[caller] = answer.Header.Revision
		return nil
	}
	for caller := range callers {
		if err := put(ctx, caller); err != nil {
			return nil, nil, err
		}
	}
	arms[3].op = put
	if poll {
		arms[3].op = func(ctx context.Context, caller int) error {
			ctx, cancel := context.WithTimeout(ctx, opTimeout)
			defer cancel()
			answer, err := client.Get(ctx, electionOf(name, caller))
			if err != nil {
				return err
			}
			var record map[string]any
			return json.Unmarshal(answer.Kvs[0].Value, &record)
		}
	}
	return arms, done, nil
}

// ask runs a statement that says yes or no.
func ask(ctx context.Context, conn *sql.Conn, statement, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var yes bool
	err := conn.QueryRowContext(ctx, statement, name).Scan(&yes)
	return yes, err
}
