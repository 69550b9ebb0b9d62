package mysqllock

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// maxNameLength is the width of the name columns, in characters.
const maxNameLength = 255

// validateName refuses what a server could store as something else: a non-strict sql_mode cuts what
// is too long, a PAD SPACE collation takes "a " for "a", and bytes that are not UTF-8 end where the
// server stops understanding them. Two elections could become one, or one two.
func validateName(field, name string, limit int) error {
	switch n := utf8.RuneCountInString(name); {
	case name == "":
		return fmt.Errorf("%s is empty; give it a name", field)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s %q is not valid UTF-8; give it in UTF-8", field, name)
	case n > limit:
		return fmt.Errorf("%s has %d characters; shorten it to at most %d", field, n, limit)
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return fmt.Errorf("%s %q has the control character %U; remove it", field, name, r)
		}
	}
	first, _ := utf8.DecodeRuneInString(name)
	last, _ := utf8.DecodeLastRuneInString(name)
	if unicode.IsSpace(first) || unicode.IsSpace(last) {
		return fmt.Errorf("%s %q begins or ends with a space; remove it", field, name)
	}
	return nil
}

// isPunctuation reports whether r is ASCII and could be SQL outside of quotes.
func isPunctuation(r rune) bool {
	return r <= unicode.MaxASCII && !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_'
}

// isASCII reports whether s means the same in every character set that a connection can have.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
