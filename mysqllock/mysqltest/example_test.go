package mysqltest_test

import (
	"context"
	"fmt"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// A server of one's own, that may be crashed and started again.
func ExampleStart() {
	ctx := context.Background()
	server, err := mysqltest.Start(ctx, mysqltest.Options{})
	must(err)
	defer func() { must(server.Close()) }()
	must(server.Kill())
	must(server.Restart(ctx))
	db, err := mysqllock.Open(server.Config())
	must(err)
	defer func() { must(db.Close()) }()
	fmt.Println("it answers:", db.PingContext(ctx) == nil)
	// Output: it answers: true
}

// Any server, and a database of one's own on it.
func ExampleShared() {
	ctx := context.Background()
	server, err := mysqltest.Shared(ctx)
	must(err)
	defer func() { must(server.Close()) }()
	config := server.Config()
	config.DBName, err = server.CreateDatabase(ctx)
	must(err)
	defer func() { must(server.DropDatabase(ctx, config.DBName)) }()
	db, err := mysqllock.Open(config)
	must(err)
	defer func() { must(db.Close()) }()
	must(mysqllock.Migrate(ctx, db))
	elections, err := mysqllock.ListElections(ctx, db)
	must(err)
	fmt.Println(len(elections), "elections")
	// Output: 0 elections
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
