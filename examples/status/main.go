// Command status shows all elections of a database as a web page and as JSON. For a shell there is the command mysqllock
// (list -watch), which also checks that the database is fit for elections (check).
//
//	export MYSQL_USER=app MYSQL_PASSWORD=secret MYSQL_HOST=127.0.0.1 MYSQL_DBNAME=mydb
//	go run ./status                    http://localhost:8080/ and /elections.json
//
// It needs SELECT on the two tables and is no candidate itself. Serve it to people who may know who leads where: the page
// has no login of its own.
package main

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
)

//go:embed page.html
var pageText string

// html/template escapes names: anybody may have chosen them.
var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"short": short,
	"since": func(t time.Time) time.Duration { return time.Since(t) },
}).Parse(pageText))

func main() {
	address := flag.String("listen", "localhost:8080", "where to serve the page")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := func() error {
		config, err := mysqllock.ConfigFromEnv()
		if err != nil {
			return err
		}
		db, err := mysqllock.Open(config)
		if err != nil {
			return err
		}
		defer func() { _ = db.Close() }() // nothing to lose
		return serve(ctx, db, *address)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "status:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, db *sql.DB, address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		list, err := mysqllock.ListElections(r.Context(), db)
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = page.Execute(w, struct { // the reader may be gone
			Elections []mysqllock.Election
			Error     error
			Now       time.Time
		}{list, err, time.Now().UTC()})
	})
	mux.HandleFunc("GET /elections.json", func(w http.ResponseWriter, r *http.Request) {
		list, err := mysqllock.ListElections(r.Context(), db)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(entries(list)) // the reader may be gone
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(limited) // what hangs then ends with the process
	}()
	fmt.Println("serves http://" + address + "/")
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// short is a duration in its two largest units, such as "3d 4h" or "15s".
func short(d time.Duration) string {
	seconds := int64(max(d, 0) / time.Second)
	days, hours, minutes := seconds/86400, seconds/3600%24, seconds/60%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd %dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh %dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm %ds", minutes, seconds%60)
	}
	return fmt.Sprintf("%ds", seconds)
}

// entry is an election as JSON. Durations are seconds.
type entry struct {
	Election     string    `json:"election"`
	Leader       string    `json:"leader"` // empty: released
	Expired      bool      `json:"expired"`
	Ready        bool      `json:"ready"`               // as of the last renewal
	SteppingDown bool      `json:"step_down_requested"` // the leader was asked
	Age          float64   `json:"age_seconds"`         // since the last renewal
	Lease        float64   `json:"lease_seconds"`
	Since        time.Time `json:"acquire_time"`
	Transitions  int       `json:"leader_transitions"`
	FencingToken int64     `json:"fencing_token"`
}

func entries(list []mysqllock.Election) []entry {
	all := make([]entry, 0, len(list))
	for _, e := range list {
		all = append(all, entry{e.Name, e.Holder, e.Expired, e.Ready, e.StepDownRequested, e.Age.Seconds(), e.LeaseDuration.Seconds(), e.AcquireTime, e.LeaderTransitions, e.FencingToken})
	}
	return all
}
