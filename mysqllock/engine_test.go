package mysqllock

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// What servers say of themselves, and whether FenceCondition is refused there.
func TestFenceConditionIsRefusedWhereAReadLockIsNotEnough(t *testing.T) {
	t.Parallel()
	connector, err := mysql.NewConnector(mysql.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector) // nothing is sent
	defer func() { _ = db.Close() }()
	const page = "16384" // what InnoDB has
	for _, c := range []struct {
		name         string
		variables    map[string]string
		want         engine
		refused      string // what the error of FenceCondition names; "": it is not refused
		guardByWrite bool
	}{
		{"MySQL", map[string]string{"version": "9.7.0", "version_comment": "MySQL Community Server - GPL", "innodb_page_size": page}, mySQL, "", false},
		{"MySQL with the plugin of groups and no group", map[string]string{"version": "9.7.0", "group_replication_group_name": "", "innodb_page_size": page}, mySQL, "", false},
		{"MySQL in a group", map[string]string{"version": "9.7.0", "group_replication_group_name": "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa", "innodb_page_size": page}, groupReplication, "Group Replication", true},
		{"MariaDB", map[string]string{"version": "11.8.3-MariaDB", "version_comment": "mariadb.org binary distribution", "wsrep_on": "OFF", "innodb_page_size": page}, mariaDB, "", false},
		{"Galera", map[string]string{"version": "10.11.14-MariaDB", "wsrep_on": "ON", "innodb_page_size": page}, galera, "Galera", true},
		{"TiDB", map[string]string{"version": "8.0.11-TiDB-v8.4.0", "version_comment": "TiDB Server (Apache License 2.0)", "innodb_page_size": page}, tiDB, "TiDB", true},
		{"TiDB with a version of the user's", map[string]string{"version": "8.0.11", "version_comment": "ours", "tidb_txn_mode": "", "innodb_page_size": page}, tiDB, "TiDB", true},
		{"Vitess", map[string]string{"version": "8.4.6-Vitess", "version_comment": "MySQL Community Server - GPL", "innodb_page_size": page}, vitess, "Vitess", true},
		{"Vitess with a version of the user's", map[string]string{"version": "9.7.4", "version_comment": "Version: 24.0.4 (Git revision  branch '') built on Thu Jan  1 00:00:00 UTC 1970 by a@b using go1.26 linux/amd64", "innodb_page_size": page}, vitess, "Vitess", true},
		{"neither", map[string]string{"version": "8.0.33", "version_comment": "Dolt"}, unknownEngine, "kind", true},
		{"no answer", nil, unknownEngine, "SHOW VARIABLES", true},
		{"no version", map[string]string{"wsrep_on": "OFF", "innodb_page_size": page}, unknownEngine, "SHOW VARIABLES", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lock, err := New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"})
			if err != nil {
				t.Fatal(err)
			}
			on := engineOf(c.variables)
			lock.term.begin(1, time.Now(), on)
			_, _, err = lock.FenceCondition()
			switch {
			case c.refused == "" && err != nil:
				t.Error(err)
			case c.refused != "" && (err == nil || errors.Is(err, ErrNotLeader) || !strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "use Transact")):
				t.Errorf("error %v, want one that names %s and Transact", err, c.refused)
			}
			if on != c.want {
				t.Errorf("taken for %v", on)
			}
			if on.guardsByWrite() != c.guardByWrite {
				t.Errorf("a guard by a write: %t", on.guardsByWrite())
			}
		})
	}
}
