package mysqllocktest_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// In a test file of yours this is TestMyServerIsFitForTheLock, a function of its own.
func ExampleRun() {
	_ = func(t *testing.T) {
		mysqllocktest.Run(t, func(t *testing.T) *sql.DB {
			t.Helper()
			config, err := mysql.ParseDSN("app:secret@tcp(db.example.com:3306)/mydb")
			if err != nil {
				t.Fatal(err)
			}
			db, err := mysqllock.Open(config) // or a pool as your program makes it
			if err != nil {
				t.Fatal(err)
			}
			return db
		})
	}
}

// How often a renewal waits for the server; it takes at least as many times as long as a packet there and back.
func ExampleMeasure() {
	ctx := context.Background()
	server, err := mysqltest.Shared(ctx) // or a configuration of yours
	must(err)
	defer func() { must(server.Close()) }()
	config := server.Config()
	config.DBName, err = server.CreateDatabase(ctx)
	must(err)
	defer func() { must(server.DropDatabase(ctx, config.DBName)) }()

	var meter mysqltest.Meter
	config.DialFunc = meter.Dial
	db, err := mysqllock.Open(config) // or a pool as your program makes it
	must(err)
	defer func() { must(db.Close()) }()
	must(mysqllock.Migrate(ctx, db))
	operations, err := mysqllocktest.Measure(ctx, db, &meter)
	must(err)
	for _, o := range operations {
		if o.Name == "poll" || o.Name == "renewal" {
			fmt.Printf("%s: %d round trip\n", o.Name, o.RoundTrips)
		}
	}
	// Output:
	// poll: 1 round trip
	// renewal: 1 round trip
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
