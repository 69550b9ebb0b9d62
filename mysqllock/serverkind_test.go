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
	for _, c := range []struct {
		name         string
		variables    map[string]string
		refused      string // what the error names; "": it is not refused
		guardByWrite bool
	}{
		{"MySQL", map[string]string{"version": "9.7.0", "version_comment": "MySQL Community Server - GPL"}, "", false},
		{"MySQL with the plugin of groups and no group", map[string]string{"version": "9.7.0", "group_replication_group_name": ""}, "", false},
		{"MySQL in a group", map[string]string{"version": "9.7.0", "group_replication_group_name": "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"}, "Group Replication", true},
		{"MariaDB", map[string]string{"version": "11.8.3-MariaDB", "version_comment": "mariadb.org binary distribution", "wsrep_on": "OFF"}, "", false},
		{"Galera", map[string]string{"version": "10.11.14-MariaDB", "wsrep_on": "ON"}, "Galera", true},
		{"TiDB", map[string]string{"version": "8.0.11-TiDB-v8.4.0", "version_comment": "TiDB Server (Apache License 2.0)"}, "TiDB", true},
		{"TiDB with a version of the user's", map[string]string{"version": "8.0.11", "version_comment": "TiDB Server (Apache License 2.0)"}, "TiDB", true},
		{"Vitess", map[string]string{"version": "8.4.6-Vitess", "version_comment": "MySQL Community Server - GPL"}, "Vitess", false},
		{"no answer", nil, "SHOW VARIABLES", true},
		{"no version", map[string]string{"wsrep_on": "OFF"}, "SHOW VARIABLES", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lock, err := New(db, "e", resourcelock.ResourceLockConfig{Identity: "a"})
			if err != nil {
				t.Fatal(err)
			}
			kind := serverKindOf(c.variables)
			lock.term.begin(1, time.Now(), kind)
			_, _, err = lock.FenceCondition()
			switch {
			case c.refused == "" && err != nil:
				t.Error(err)
			case c.refused != "" && (err == nil || errors.Is(err, ErrNotLeader) || !strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "use Transact")):
				t.Errorf("error %v, want one that names %s and Transact", err, c.refused)
			}
			if kind.guardsByWrite() != c.guardByWrite {
				t.Errorf("a guard by a write: %t", kind.guardsByWrite())
			}
		})
	}
}
