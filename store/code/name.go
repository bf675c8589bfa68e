package code

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"starling"
)

const (
	nameMax    = 1024 // bytes of an entry's name
	elementMax = 255  // bytes of one element of it, as Linux file systems have it
	depthMax   = 64   // elements of a name
)

// checkName reports whether the name of an entry is safe and means the same on every machine. A name is
// also refused when its compatibility form (NFKC) is not safe: "．．／x" looks like "../x" to whatever
// normalises it later.
func checkName(name string) error {
	if len(name) > nameMax {
		return refuse(name, "its name has %d bytes: use at most %d", len(name), nameMax)
	}
	if !utf8.ValidString(name) {
		return refuse(name, "its name is not UTF-8: pack it again with UTF-8 names")
	}
	if why := unsafeName(strings.TrimSuffix(name, "/")); why != "" {
		return refuse(name, "%s", why)
	}
	if folded := norm.NFKC.String(name); folded != name {
		if why := unsafeName(strings.TrimSuffix(folded, "/")); why != "" || strings.Count(folded, "/") != strings.Count(name, "/") {
			return refuse(name, "its name looks like a path outside the package: rename it")
		}
	}
	return nil
}

// unsafeName says why a name without its final slash cannot be unpacked; empty when it can.
func unsafeName(name string) string {
	switch {
	case name == "":
		return "its name is empty"
	case name[0] == '/':
		return "its path is absolute: use paths inside the package"
	case strings.Contains(name, "\\"):
		return "its path holds a backslash: use \"/\" between folders"
	case len(name) >= 2 && name[1] == ':' && unicode.IsLetter(rune(name[0])):
		return "its path names a drive: use paths inside the package"
	case strings.IndexFunc(name, unicode.IsControl) >= 0:
		return "its name holds a control character"
	}
	depth := 0
	for element := range strings.SplitSeq(name, "/") {
		switch {
		case element == "..":
			return "its path leaves the package: remove \"..\""
		case element == "" || element == ".":
			return "its path holds an empty or \".\" element"
		case len(element) > elementMax:
			return "an element of its path is longer than 255 bytes"
		}
		depth++
	}
	if depth > depthMax {
		return "its path has more than 64 elements"
	}
	return ""
}

// refuse is an Invalid error that names the entry.
func refuse(name, format string, args ...any) error {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	return starling.Errorf(starling.Invalid, "check package", "entry %q: "+format, append([]any{name}, args...)...).With("InvalidPackage")
}

// refuseSize is a TooLarge error over the package as a whole.
func refuseSize(format string, args ...any) error {
	return starling.Errorf(starling.TooLarge, "check package", format, args...).With("PackageTooLarge")
}
