package mysqltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// accounts makes the only account that can log in. Names with 'localhost' are for the socket, as names are not
// resolved; MySQL makes a root without a password there, MariaDB's scripts make none but the two locked ones it needs.
// One statement a line: MySQL's --init-file knows no other form in its older versions.
func accounts(user, password string) string {
	var b strings.Builder
	b.WriteString("FLUSH PRIVILEGES;\n") // MariaDB's bootstrap knows no accounts until it has read the new tables
	b.WriteString("DROP USER IF EXISTS 'root'@'localhost';\n")
	for _, host := range []string{"127.0.0.1", "localhost"} {
		fmt.Fprintf(&b, "CREATE USER '%s'@'%s' IDENTIFIED BY '%s';\n", user, host, password)
		fmt.Fprintf(&b, "GRANT ALL PRIVILEGES ON *.* TO '%s'@'%s' WITH GRANT OPTION;\n", user, host)
	}
	return b.String()
}

// initialise makes the data directory.
func (s *Server) initialise(ctx context.Context) error {
	sql := accounts(s.config.User, s.config.Passwd)
	args := append(s.commonOptions(), "--skip-log-bin")
	if s.mariadb {
		tables, err := s.systemTables(ctx)
		if err != nil {
			return err
		}
		sql = tables + sql
		args = append(args, "--bootstrap")
		if err := os.Mkdir(s.path("data"), 0o700); err != nil {
			return err
		}
	} else {
		args = append(args, "--initialize-insecure", "--init-file="+s.path("init.sql"))
	}
	if err := os.WriteFile(s.path("init.sql"), []byte(sql), 0o600); err != nil {
		return err
	}
	in, err := os.Open(s.path("init.sql"))
	if err != nil {
		return err
	}
	defer in.Close()
	proc, err := s.launch(in, append(args, s.options.Args...))
	if err != nil {
		return err
	}
	if err := proc.wait(ctx); err != nil {
		return errors.Join(s.withLog(fmt.Errorf("initialise the data directory: %w", err)), s.end(proc))
	}
	s.reaper.forget()
	if err := proc.failure(); err != nil {
		return s.withLog(fmt.Errorf("initialise the data directory: %w", err))
	}
	return nil
}

// systemTables returns MariaDB's own scripts for its system tables. mariadb-install-db, which would run them, is a
// separate program that starts the server by a path of its own, and may not be there. The help tables, the sys schema
// and the root accounts (…_system_tables_data.sql) are left out: tests do without, and they take most of the time.
func (s *Server) systemTables(ctx context.Context) (string, error) {
	args := []string{"--no-defaults", "--verbose", "--help", "--datadir=" + s.dir}
	out, err := ask(ctx, s.program, append(args, asRoot()...)...)
	if err != nil {
		return "", fmt.Errorf("%s --verbose --help: %w: %s", s.program, err, lastLines(out, 5))
	}
	share := shareDirs(out)
	var b bytes.Buffer
	b.WriteString("CREATE DATABASE mysql;\nUSE mysql;\n")
	for _, script := range []string{"system_tables.sql", "performance_tables.sql"} {
		text, err := readScript(share, script)
		if err != nil {
			return "", err
		}
		b.Write(text)
		b.WriteString("\n")
	}
	return b.String(), nil
}

// shareDirs returns the folders that may hold the scripts, as the server's --verbose --help reports its own.
func shareDirs(help string) []string {
	value := func(option string) string {
		for line := range strings.Lines(help) {
			if name, rest, ok := strings.Cut(line, " "); ok && name == option {
				if rest = strings.TrimSpace(rest); !strings.HasPrefix(rest, "(No default") {
					return rest
				}
			}
		}
		return ""
	}
	base := value("basedir")
	var dirs []string
	for _, dir := range []string{
		value("lc-messages-dir"), filepath.Dir(value("character-sets-dir")),
		"share/mysql", "share/mariadb", "share", "/usr/share/mysql", "/usr/share/mariadb",
	} {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(base, dir)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// readScript reads one of the scripts, whose names began with mysql_ before MariaDB 11.
func readScript(dirs []string, name string) ([]byte, error) {
	for _, dir := range dirs {
		for _, prefix := range []string{"mariadb_", "mysql_"} {
			text, err := os.ReadFile(filepath.Join(dir, prefix+name))
			if err == nil {
				return text, nil
			}
			if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
	}
	return nil, fmt.Errorf("MariaDB's mysql_%s or mariadb_%s is in none of %s (a wrapper must pass --lc-messages-dir)",
		name, name, strings.Join(dirs, ", "))
}

// tempDir makes the server's directory. A path of a Unix socket must stay below some 104 bytes, and macOS's TMPDIR
// alone takes half of that, so a long one is given up for /tmp.
func tempDir() (string, error) {
	parent := os.TempDir()
	if len(parent) > 60 {
		parent = "/tmp"
	}
	return os.MkdirTemp(parent, "mysqllock-")
}

// withLog adds the end of what the server wrote since it was last started.
func (s *Server) withLog(err error) error {
	text := s.logText()
	if strings.TrimSpace(text) == "" {
		return fmt.Errorf("%w (it wrote nothing to its log)", err)
	}
	return fmt.Errorf("%w; the end of its log:\n%s", err, lastLines(text, 20))
}

func (s *Server) logText() string {
	f, err := os.Open(s.path("log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(s.logStart, io.SeekStart); err != nil {
		return ""
	}
	text, _ := io.ReadAll(f)
	return string(text)
}

// poll calls cond until it is true, at intervals, or until ctx ends.
func poll(ctx context.Context, cond func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := cond(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
