package docs

import (
	"fmt"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// goText is all Go of the repository, and that of its tests.
var goText = sync.OnceValues(func() (text string, err error) {
	var all strings.Builder
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Ext(path) == ".go" {
			var content []byte
			content, err = os.ReadFile(path)
			all.Write(content)
		}
		return err
	})
	return all.String(), err
})

var (
	testName = regexp.MustCompile(`\bTest[A-Z]\w+`)
	apiName  = regexp.MustCompile(`\bmysqllock\.([A-Z]\w+)|^(With[A-Z]\w+)`)
)

// A claim that names a test loses it when the test gets another name.
func TestEachTestThatIsNamedIsThere(t *testing.T) {
	t.Parallel()
	found := 0
	for _, d := range documents(t) {
		for _, span := range d.code() {
			for _, name := range testName.FindAllString(span, -1) {
				found++
				if err := testIsThere(name); err != nil {
					t.Errorf("%s: %v", d.path, err)
				}
			}
		}
	}
	if found < 12 {
		t.Errorf("only %d tests are named: were they all found?", found)
	}
	if testIsThere("TestNo"+"SuchTest") == nil {
		t.Error("a test that isn't there was found")
	}
}

// testIsThere looks for a test of that name, or, as for go test -run, one whose name begins with it.
func testIsThere(name string) error {
	text, err := goText()
	if err == nil && !strings.Contains(text, "\nfunc "+name) {
		err = fmt.Errorf("there is no test %s", name)
	}
	return err
}

func TestEachNameOfTheLibraryIsThere(t *testing.T) {
	t.Parallel()
	library, err := compiled(t, token.NewFileSet()).Import("github.com/mysqllock/go-leaderelection-mysql/mysqllock")
	if err != nil {
		t.Fatal(err)
	}
	names := library.Scope().Names()
	found := 0
	for _, d := range documents(t) {
		for _, span := range d.code() {
			for _, match := range apiName.FindAllStringSubmatch(span, -1) {
				found++
				if name := match[1] + match[2]; !slices.Contains(names, name) {
					t.Errorf("%s: package mysqllock has no %s", d.path, name)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d names are used: were they all found?", found)
	}
}
