package mysqllock_test

import (
	"context"
	"database/sql"
	"fmt"

	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

// A resource that is not in the transaction's reach keeps the largest fencing
// token that it has seen, and refuses smaller ones. Here the resource is another
// table; it may be a header that a service checks, or a field of an object.
func ExampleLock_FencingToken() {
	ctx := context.Background()
	db, drop := exampleDatabase(ctx)
	defer drop()
	lock := func(identity string) *mysqllock.Lock {
		l, err := mysqllock.New(db, "writers", resourcelock.ResourceLockConfig{Identity: identity})
		must(err)
		return l
	}
	set := func(value string, token int64) {
		result, err := db.ExecContext(ctx, `UPDATE resource SET value = ?, fence = ? WHERE id = 1 AND fence <= ?`, value, token, token)
		must(err)
		n, err := result.RowsAffected()
		must(err)
		fmt.Printf("%s: accepted %t\n", value, n == 1)
	}

	// An elector does this; the token is read once, when the term begins.
	first := lock("first")
	must(tryTakeOver(ctx, first))
	old, _ := first.FencingToken()
	set("by the first leader", old)

	second := lock("second") // the first one was paused beyond its lease
	must(tryTakeOver(ctx, second))
	token, _ := second.FencingToken()
	set("by the second leader", token)

	set("by the first one, late", old)
	// Output:
	// by the first leader: accepted true
	// by the second leader: accepted true
	// by the first one, late: accepted false
}

// exampleDatabase is one with the tables of the lock and of the example.
func exampleDatabase(ctx context.Context) (db *sql.DB, drop func()) {
	name, err := server.CreateDatabase(ctx)
	must(err)
	config := server.Config()
	config.DBName = name
	db, err = mysqllock.Open(config)
	must(err)
	must(mysqllock.Migrate(ctx, db))
	for _, statement := range []string{
		`CREATE TABLE resource (id INT PRIMARY KEY, value VARCHAR(100) NOT NULL, fence BIGINT NOT NULL)`,
		`INSERT INTO resource VALUES (1, 'nothing yet', 0)`,
	} {
		_, err := db.ExecContext(ctx, statement)
		must(err)
	}
	return db, func() {
		must(db.Close())
		must(server.DropDatabase(ctx, name))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
