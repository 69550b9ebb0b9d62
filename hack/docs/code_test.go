package docs

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"
)

// before is what a block of Go may use without saying so.
const before = `package snippet

import (
	"context"
	"database/sql"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock"
	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqllocktest"
)

func _(ctx context.Context, t *testing.T, cfg *rest.Config, enableLeaderElection bool, id string,
	db *sql.DB, open func(*testing.T) *sql.DB, lock *mysqllock.Lock, work func(context.Context), start, stop func()) {
	{
`

func TestGoCompiles(t *testing.T) {
	t.Parallel()
	blocks := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			switch b.language {
			case "diff":
				after, err := after(b.text)
				if err != nil {
					t.Errorf("%s: %v", d.at(b), err)
					continue
				}
				b.text = after
			case "go":
			default:
				continue
			}
			blocks++
			if err := compile(t, d.at(b), b.text); err != nil {
				t.Error(err)
			}
		}
	}
	if blocks < 4 {
		t.Errorf("there are only %d blocks of Go: were they all found?", blocks)
	}
}

// The check itself finds what it is for.
func TestGoThatDoesNotCompileIsFound(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"mysqllock.Nope()":                         "page.md:7:11: undefined: mysqllock.Nope",
		"\nerr := mysqllock.Migrate(db)":           "page.md:8:",
		"ctrl.Options{LeaderElectionLock: lock}":   "page.md:7:14: unknown field LeaderElectionLock",
		"if enableLeaderElection {":                "expected",
		"var _ resourcelock.Interface = mysqllock": "page.md:7:",
	} {
		if err := compile(t, "page.md:7", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, not %q", text, err, want)
		}
	}
	if err := compile(t, "page.md:7", "lock, err := mysqllock.New(db, id, resourcelock.ResourceLockConfig{})"); err != nil {
		t.Error(err)
	}
	if after, err := after("-a\n+b\n c\n"); after != "b\nc\n" || err != nil {
		t.Errorf("%q, %v", after, err)
	}
	if _, err := after("-a\nb\n"); err == nil {
		t.Error("a line of a diff without a sign was not found")
	}
}

// after is what a diff makes.
func after(diff string) (string, error) {
	var text strings.Builder
	for line := range strings.Lines(diff) {
		switch {
		case strings.HasPrefix(line, "+"), strings.HasPrefix(line, " "):
			text.WriteString(line[1:])
		case !strings.HasPrefix(line, "-"):
			return "", fmt.Errorf("%q begins with none of +, - and a space", line)
		}
	}
	return text.String(), nil
}

// compile says what is wrong with a block of Go, but for variables that it doesn't use.
func compile(t *testing.T, at, text string) error {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", before+"//line "+at+":1\n"+text+"\n}\n}\n", parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	var wrong []error
	config := types.Config{Importer: compiled(t, files), Error: func(err error) {
		var e types.Error
		if !errors.As(err, &e) || !e.Soft {
			wrong = append(wrong, err)
		}
	}}
	_, _ = config.Check("snippet", files, []*ast.File{file}, nil) // its error is the first of wrong
	return errors.Join(wrong...)
}

// exports are where the compiler put each package that a block may use, of the versions that the examples have.
var exports = sync.OnceValues(func() (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "", before+"}\n}\n", parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}"}
	for _, i := range file.Imports {
		args = append(args, strings.Trim(i.Path.Value, `"`))
	}
	list := exec.Command("go", args...)
	list.Dir = filepath.Join(root, "examples")
	list.Env = append(os.Environ(), "GOWORK=off")
	var messages bytes.Buffer
	list.Stderr = &messages
	output, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, messages.String())
	}
	found := map[string]string{}
	for line := range strings.Lines(string(output)) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[name] = file
	}
	return found, nil
})

func compiled(t *testing.T, files *token.FileSet) types.Importer {
	t.Helper()
	packages, err := exports()
	if err != nil {
		t.Fatal(err)
	}
	return importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) { return os.Open(packages[path]) })
}

func TestAlertsAreOnMetricsThatATestSees(t *testing.T) {
	t.Parallel()
	tests := read(t, filepath.Join("examples", "operator", "main_test.go"))
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "yaml" {
				continue
			}
			var alerts []struct {
				Alert, Expr, For string
			}
			if err := yaml.UnmarshalStrict([]byte(b.text), &alerts); err != nil {
				t.Errorf("%s: %v", d.at(b), err)
			}
			for _, alert := range alerts {
				if metric := "leader_election_master_status"; !strings.Contains(alert.Expr, metric) || !strings.Contains(tests, metric+"{name=") {
					t.Errorf("%s: %s has another metric than %s, or that is in no test", d.at(b), alert.Alert, metric)
				}
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What the README quotes of the demo is what the demo still prints, but for names, times and tokens.
func TestTheDemoStillPrintsWhatIsQuoted(t *testing.T) {
	t.Parallel()
	demo := goOf(t, filepath.Join("examples", "quickstart"))
	quoted := regexp.MustCompile(`^ +[0-9.]+ +[a-z]+ +([^:]+)|^Act [0-9]  ([^:]+)`)
	found := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "" {
				continue
			}
			for line := range strings.Lines(b.text) {
				match := quoted.FindStringSubmatch(line)
				if match == nil {
					t.Errorf("%s: %q is not as the demo prints it", d.at(b), line)
					continue
				}
				found++
				if text := strings.TrimSpace(match[1] + match[2]); !strings.Contains(demo, text) {
					t.Errorf("%s: the demo prints no %q", d.at(b), text)
				}
			}
		}
	}
	if found == 0 {
		t.Error("nothing is quoted")
	}
}
