package main

import (
	"slices"
	"strings"
	"testing"
)

func TestHelpDescribesEachCommandWithAnExample(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-h"}, {"--help"}, {"help"}} {
		r := do(t, nil, args...)
		r.is(t, 0, "Exit codes:", "")
		for name := range commands {
			if !strings.Contains(r.stdout, "mysqllock "+name) {
				t.Errorf("%q says nothing of %s", args, name)
			}
		}
	}
	for name := range commands {
		r := do(t, nil, name, "-h")
		r.is(t, 0, "Examples:\n  mysqllock "+name, "")
		for _, want := range []string{"Exit codes:", "-dsn", "-database"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("the help of %s has no %s", name, want)
			}
		}
		for line := range strings.Lines(r.stdout) {
			if width(line) > 125 {
				t.Errorf("a line of %s is long: %s", name, line)
			}
		}
		if again := do(t, nil, "help", name); again.stdout != r.stdout {
			t.Errorf("mysqllock help %s: %+v", name, again)
		}
	}
}

func TestBadInputIsRefusedWithARemedy(t *testing.T) {
	t.Parallel()
	const password = "s3cret/word"
	env := []string{"MYSQL_HOST=db.example.invalid", "MYSQL_USER=app", "MYSQL_PASSWORD=" + password, "MYSQL_DBNAME=d"}
	dsn := "app:" + password + "@tcp(db.example.invalid:3306)/d"
	for _, c := range []struct {
		name string
		env  []string
		args []string
		want string
	}{
		{"no command", env, nil, "it needs a command: list, check, migrate, step-down or forget; mysqllock -h describes them"},
		{"an unknown command", env, []string{"lsit"}, `"lsit" is not a command; mysqllock -h lists them`},
		{"a flag before the command", env, []string{"-o", "json", "list"}, `"-o" is not a command`},
		{"an unknown flag", env, []string{"list", "-wide"}, "list: flag provided but not defined: -wide; mysqllock list -h describes it"},
		{"an unknown form of list", env, []string{"list", "-o", "yaml"}, "-o is neither wide nor json"},
		{"an unknown form of check", env, []string{"check", "-o", "wide"}, "-o is not json"},
		{"an argument too many", env, []string{"list", dsn}, "list takes no argument, and has 1"},
		{"no election to forget", env, []string{"forget"}, "forget takes one argument, the election's name, and has 0"},
		{"two elections to hand over", env, []string{"step-down", "a", "-wait", "b"}, "step-down takes one argument, the election's name, and has 2"},
		{"a wait that is no duration", env, []string{"migrate", "-wait", "soon"}, `migrate: invalid value "soon" for flag -wait`},
		{"no settings", nil, []string{"list"}, "MYSQL_USER is not set (set it to the name of the account)"},
		{"no settings, and no file", nil, []string{"list"}, "or name a file that holds a DSN by -dsn"},
		{"a DSN in place of its file", env, []string{"list", "-dsn", dsn}, "the file that -dsn names can't be read: no such file or directory; it must hold one DSN"},
		{"a folder in place of a file", env, []string{"list", "-dsn", t.TempDir()}, "the file that -dsn names can't be read: is a directory"},
		{"a file without a DSN", env, []string{"list", "-dsn", writeFile(t, "app:"+password)}, "the file that -dsn names has no DSN that the driver understands; it must hold one DSN, as user:password@tcp(host:3306)/database"},
		{"a DSN of an unknown network", env, []string{"list", "-dsn", writeFile(t, "app:"+password+"/d")}, "no DSN that the driver understands"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := do(t, c.env, c.args...)
			r.is(t, exitUsage, "", c.want)
			if !strings.HasPrefix(r.stderr, "mysqllock: ") || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("not one line: %s", r.stderr)
			}
			for _, secret := range []string{password, "example.invalid"} {
				if strings.Contains(r.stderr, secret) {
					t.Errorf("it shows %q: %s", secret, r.stderr)
				}
			}
		})
	}
}

// asks are the commands as they are used.
var asks = map[string][]string{
	"list": {"list"}, "watch": {"list", "-watch"}, "json": {"list", "-o", "json"}, "check": {"check"},
	"step-down": {"step-down", "e"}, "forget": {"forget", "e"},
}

func TestWithoutAServerEachCommandFailsAndShowsNoHost(t *testing.T) {
	t.Parallel()
	port := closedPort(t)
	env := []string{"MYSQL_HOST=127.0.0.1", "MYSQL_PORT=" + port, "MYSQL_USER=app", "MYSQL_PASSWORD=s3cret", "MYSQL_DBNAME=d"}
	for name, args := range asks {
		r := do(t, env, args...)
		r.is(t, exitFailed, "", "connection refused")
		if strings.Contains(r.stderr, "127.0.0.1") || strings.Contains(r.stderr, port) || strings.Contains(r.stderr, "s3cret") {
			t.Errorf("%s shows too much: %s", name, r.stderr)
		}
	}
	do(t, env, "migrate").is(t, exitFailed, "", "connection refused")
}

func TestWithoutTablesEachCommandNamesTheRemedy(t *testing.T) {
	t.Parallel()
	db := newDatabase(t)
	for name, args := range asks {
		if name != "check" {
			do(t, db.env, args...).is(t, exitFailed, "", "; the command for that is: mysqllock migrate\n")
		}
	}
}

func TestADSNsFileAndAnotherDatabaseAreUsed(t *testing.T) {
	t.Parallel()
	db, elsewhere := newTables(t), newDatabase(t)
	db.release(t, db.lead(t, "mine", "a", 15))
	config := elsewhere.config.Clone()
	file := writeFile(t, config.FormatDSN()+"\n")
	here := []string{"-dsn", file, "-database", db.config.DBName}
	do(t, nil, append([]string{"list"}, here...)...).is(t, 0, "mine", "")
	do(t, nil, append([]string{"check"}, here...)...).is(t, 0, "elections will work here", "")
	do(t, nil, append([]string{"step-down", "mine"}, here...)...).is(t, exitRefused, "", "nobody leads")
	do(t, nil, append([]string{"forget", "mine"}, here...)...).is(t, 0, "mine is forgotten", "")
	do(t, nil, "migrate", "-dsn", file).is(t, 0, "the tables are there and current", "")
	do(t, nil, "list", "-dsn", file, "-database", "no such").is(t, exitFailed, "", "mysqllock: list elections: ")
}

func TestFlagsMayComeBeforeAndAfterTheName(t *testing.T) {
	t.Parallel()
	db := newTables(t)
	for _, args := range [][]string{{"-expired", "e"}, {"e", "-expired"}, {"-expired", "--", "-e"}} {
		name := slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return arg == "-expired" || arg == "--" })[0]
		db.lead(t, name, "a", 1)
		db.silent(t, name, 11)
		do(t, db.env, append([]string{"forget"}, args...)...).is(t, 0, name+" is forgotten", "")
	}
}
