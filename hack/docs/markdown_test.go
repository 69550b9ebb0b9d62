package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// root is the repository's folder.
const root = "../.."

// document is a Markdown file, taken apart.
type document struct {
	path    string // below the repository's folder
	blocks  []block
	prose   []string // a paragraph each, with code in backticks
	anchors []string
}

// block is a fenced block of code.
type block struct {
	language, text string
	line           int // of its first line in the file
}

func (d *document) at(b block) string { return fmt.Sprintf("%s:%d", d.path, b.line) }

// documents are all Markdown files of the repository.
func documents(t *testing.T) []*document {
	t.Helper()
	var found []*document
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains([]string{".git", "bin"}, entry.Name()) {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		d, err := parse(filepath.ToSlash(name), string(text))
		found = append(found, d)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "examples/README.md", "mysqllock/OPERATIONS.md", "hack/README.md", ".github/SECURITY.md"} {
		if !slices.ContainsFunc(found, func(d *document) bool { return d.path == name }) {
			t.Fatalf("%s is not among the %d documents", name, len(found))
		}
	}
	return found
}

func parse(path, text string) (*document, error) {
	d := &document{path: path}
	var paragraph []string
	endParagraph := func() {
		if len(paragraph) > 0 {
			d.prose = append(d.prose, strings.Join(paragraph, "\n"))
			paragraph = nil
		}
	}
	var open *block
	for i, line := range strings.Split(text, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		heading := regexp.MustCompile(`^#{1,6} +(.+)$`).FindStringSubmatch(line)
		switch {
		case fence && open == nil:
			endParagraph()
			open = &block{language: language, line: i + 2}
		case fence:
			d.blocks = append(d.blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		case heading != nil:
			endParagraph()
			d.prose = append(d.prose, line)
			d.anchors = append(d.anchors, d.anchor(heading[1]))
		case strings.TrimSpace(line) == "":
			endParagraph()
		default:
			paragraph = append(paragraph, line)
		}
	}
	endParagraph()
	if open != nil {
		return d, fmt.Errorf("%s: the block of code never ends", d.at(*open))
	}
	return d, nil
}

// anchor is what GitHub makes of a heading: in small letters, without punctuation, with hyphens for spaces, and with a
// number if it was there before.
func (d *document) anchor(heading string) string {
	heading = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(heading, "$1")
	anchor := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
	numbered := anchor
	for n := 1; slices.Contains(d.anchors, numbered); n++ {
		numbered = fmt.Sprintf("%s-%d", anchor, n)
	}
	return numbered
}

var codeSpan = regexp.MustCompile("`[^`]+`")

// code is what the prose has in backticks.
func (d *document) code() []string {
	var found []string
	for _, paragraph := range d.prose {
		for _, span := range codeSpan.FindAllString(paragraph, -1) {
			found = append(found, strings.Join(strings.Fields(strings.Trim(span, "`")), " "))
		}
	}
	return found
}

func TestEachBlockOfCodeIsInALanguageThatIsChecked(t *testing.T) {
	t.Parallel()
	checked := []string{
		"go", "diff", "sh", "yaml", // here
		"sql",     // by package mysqllock
		"mermaid", // a picture
		"",        // what a program printed
	}
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if !slices.Contains(checked, b.language) {
				t.Errorf("%s: nothing checks a block of %q; use one of %q", d.at(b), b.language, checked)
			}
		}
	}
}
