package docs

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEachLinkLeadsSomewhere(t *testing.T) {
	t.Parallel()
	all := documents(t)
	links := 0
	for _, d := range all {
		found := d.links()
		links += len(found)
		for _, link := range found {
			if err := follow(root, all, d, link); err != nil {
				t.Errorf("%s: %s: %v", d.path, link, err)
			}
		}
	}
	if links < 50 {
		t.Errorf("there are only %d links: were they all found?", links)
	}
}

// The check itself finds what it is for.
func TestLinksThatLeadNowhereAreFound(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := os.MkdirAll(filepath.Join(folder, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "sub", "code.go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	page := func(name, text string) *document {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := parse(name, text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	other := page("sub/other.md", "# `Transact`: client-go's, v1.2\n\n## Twice\n\n## Twice\n\n```sh\n# no heading\n```\n")
	from := page("from.md", strings.Join([]string{
		"[a](sub/other.md) [b](sub/other.md#transact-client-gos-v12) [c](sub/other.md#twice-1) [d](sub) [e](sub/code.go)",
		"[f](https://example.com/x#y) [`g`](#here) ![h](sub/code.go), [two",
		"lines](sub/other.md#no-such) `[code](nowhere.md)`",
		"",
		"# Here",
		"",
		"[i](sub/others.md) [j](sub/other.md#twice-2) [k](#nowhere) [l](sub/other.md#no-heading) ![m](picture.svg)",
		"[n](https:///x) [o](/sub/other.md) [p](../outside.md) [q](sub/code.go#L3) [r](ftp://example.com/x) [s](sub/other.md \"title\") [t](sub%2)",
		"[`n`](sub/gone.md \"title\"), [u][reference], <https://example.com>",
		"",
		"[reference]: sub/gone.md",
		"",
		"```",
		"[v](nowhere.md)",
		"```",
	}, "\n"))
	want := []string{
		"sub/other.md#no-such", "sub/others.md", "sub/other.md#twice-2", "#nowhere", "sub/other.md#no-heading", "picture.svg",
		"https:///x", "/sub/other.md", "../outside.md", "sub/code.go#L3", "ftp://example.com/x", "sub%2", "sub/gone.md", "sub/gone.md",
	}
	var found []string
	for _, link := range from.links() {
		if err := follow(folder, []*document{from, other}, from, link); err != nil {
			found = append(found, link)
		}
	}
	if !slices.Equal(found, want) {
		t.Errorf("found %q, not %q", found, want)
	}
}

// An inline link's or picture's target, with or without a title; a reference's.
var linkTarget = regexp.MustCompile(`\]\(\s*([^()\s]+)(?:\s+"[^"]*")?\s*\)|(?m:^\[[^]]+\]:\s+(\S+))`)

func (d *document) links() []string {
	var found []string
	for _, paragraph := range d.prose {
		for _, match := range linkTarget.FindAllStringSubmatch(codeSpan.ReplaceAllString(paragraph, ""), -1) {
			found = append(found, match[1]+match[2])
		}
	}
	return found
}

// follow says why a link leads nowhere. Addresses on the internet are looked at, not called.
func follow(root string, all []*document, from *document, link string) error {
	target, err := url.Parse(link)
	switch {
	case err != nil:
		return err
	case target.Scheme == "https" || target.Scheme == "http":
		if target.Host == "" {
			return errors.New("the address has no host")
		}
		return nil
	case target.Scheme != "" || target.Host != "" || strings.HasPrefix(target.Path, "/"):
		return errors.New("neither https nor relative to the file")
	}
	name := from.path
	if target.Path != "" {
		name = path.Join(path.Dir(from.path), target.Path)
		if name == ".." || strings.HasPrefix(name, "../") {
			return errors.New("outside of the repository")
		}
		if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(name))); err != nil {
			return fmt.Errorf("there is no %s", name)
		}
	}
	if target.Fragment == "" {
		return nil
	}
	i := slices.IndexFunc(all, func(d *document) bool { return d.path == name })
	if i < 0 {
		return fmt.Errorf("%s is no Markdown file, so that it has no anchors", name)
	}
	if !slices.Contains(all[i].anchors, target.Fragment) {
		return fmt.Errorf("%s has no such heading; it has %q", name, all[i].anchors)
	}
	return nil
}
