package docs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mysqllock/go-leaderelection-mysql"

func TestEachCommandNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	found := 0
	for _, d := range documents(t) {
		check := func(at, line string) {
			found++
			if err := exists(t, line); err != nil {
				t.Errorf("%s: %s: %v", at, line, err)
			}
		}
		for _, b := range d.blocks {
			if b.language != "sh" {
				continue
			}
			for line := range strings.Lines(b.text) {
				if line = strings.TrimSpace(comment.ReplaceAllString(line, "")); line != "" {
					check(d.at(b), line)
				}
			}
		}
		for _, span := range d.code() {
			if commandSpan.MatchString(span) {
				check(d.path, span)
			}
		}
	}
	if found < 40 {
		t.Errorf("there are only %d commands: were they all found?", found)
	}
}

// The check itself finds what it is for.
func TestCommandsThatNameNothingAreFound(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"hack/nope.sh", "hack/lib.sh", "hack/chaos.sh -nope", "hack/chaos.sh -servers nope", "hack/clusters.sh nope", "hack/test.sh -run TestNoneOfThem",
		"mysqllock nope", "mysqllock list -nope", "mysqllock list [-o wide|nope]", "mysqllock -nope", "go run ./nope", "go run ./client-go -nope 1",
		"go get example.com/nope", "go install " + module + "/nope@latest", "go doc " + module + "/nope", "go test -v -run TestNoneOfThem ./mysqllock",
		"go test ./nope", "cd nope", "nope",
	} {
		if exists(t, line) == nil {
			t.Errorf("%s: there is no such thing, and nothing was found", line)
		}
	}
}

var (
	comment     = regexp.MustCompile(`(^|\s)#.*`)
	commandSpan = regexp.MustCompile(`^(hack/\S+\.sh|mysqllock [a-z-]|go (get|install|run|doc|test) )`)
	word        = regexp.MustCompile(`^[a-z][a-z-]*$`)
)

// exists says what a command names that is not there. A script's and an example's flags and words must be in its text,
// the command's in its help. Names of elections (my-task), numbers and times can be anything.
func exists(t *testing.T, line string) error {
	t.Helper()
	args := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t[]|=", r) })
	args = slices.DeleteFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "my-") })
	name, args := args[0], args[1:]
	switch {
	case len(args) == 0 && !strings.HasPrefix(name, "hack/"):
		return errors.New("it needs an argument")
	case name == "cd":
		return folder(args[0])
	case name == "mysqllock":
		var command []string
		if !strings.HasPrefix(args[0], "-") {
			command, args = args[:1:1], args[1:]
		}
		help, err := help(command)
		if err != nil {
			return err
		}
		return mentions(help+" -h", args)
	case name == "go":
		return existsForGo(t, args)
	case strings.HasPrefix(name, "hack/"):
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			return fmt.Errorf("there is no %s", name)
		}
		if info.Mode()&0o111 == 0 {
			return fmt.Errorf("%s can't be started", name)
		}
		return mentions(read(t, name)+goOf(t, strings.TrimSuffix(name, ".sh")), args)
	}
	return errors.New("nothing checks such a command")
}

func existsForGo(t *testing.T, args []string) error {
	t.Helper()
	command, args := args[0], args[1:]
	switch command {
	case "get", "install", "doc":
		path, _, _ := strings.Cut(args[len(args)-1], "@")
		if path != module && !strings.HasPrefix(path, module+"/") {
			return fmt.Errorf("%s is another module", path)
		}
		return folder(strings.TrimPrefix(path, module))
	case "run":
		example := filepath.Join("examples", args[0])
		if err := folder(example); err != nil {
			return err
		}
		return mentions(goOf(t, example), args[1:])
	case "test":
		for _, arg := range args {
			if strings.HasPrefix(arg, "./") {
				if folder(arg) != nil && folder(filepath.Join("hack", arg)) != nil {
					return folder(arg)
				}
			} else if strings.HasPrefix(arg, "Test") {
				if err := testIsThere(arg); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return fmt.Errorf("nothing checks go %s", command)
}

func folder(name string) error {
	if info, err := os.Stat(filepath.Join(root, name)); err != nil || !info.IsDir() {
		return fmt.Errorf("there is no folder %s", name)
	}
	return nil
}

// mentions looks for flags (-name, or "name" where Go defines it), words and names of tests.
func mentions(text string, args []string) error {
	for _, arg := range args {
		flag, isFlag := strings.CutPrefix(arg, "-")
		switch {
		case isFlag && (regexp.MustCompile(`(^|[\s(])-`+regexp.QuoteMeta(flag)+`\b`).MatchString(text) || strings.Contains(text, `"`+flag+`"`)):
		case isFlag:
			return fmt.Errorf("there is no flag -%s", flag)
		case strings.HasPrefix(arg, "Test"):
			if err := testIsThere(arg); err != nil {
				return err
			}
		case word.MatchString(arg) && !regexp.MustCompile(`\b`+arg+`\b`).MatchString(text):
			return fmt.Errorf("%s is nowhere in it", arg)
		}
	}
	return nil
}

// goOf is the Go of a folder, if there is one, without its tests.
func goOf(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, file := range files {
		if content, err := os.ReadFile(file); err != nil {
			t.Fatal(err)
		} else if !strings.HasSuffix(file, "_test.go") {
			text.Write(content)
		}
	}
	return text.String()
}

// help is what mysqllock says of a command, or of itself.
func help(command []string) (string, error) {
	run := exec.Command("go", append([]string{"run", "./mysqllock/cmd/mysqllock"}, append(command, "-h")...)...)
	run.Dir = root
	run.Env = append(os.Environ(), "GOWORK=off")
	output, err := run.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, output)
	}
	return string(output), nil
}
