package code

import (
	"path"
	"strings"
)

// hopsMax bounds the links followed for one link. The kernel allows 40; a package that needs more than a
// few (libx.so → libx.so.1 → libx.so.1.2) is a trap.
const hopsMax = 8

// checkLinks reports the first symbolic link that does not lead to something in the package. A link is
// followed as the kernel would, element by element and through other links, because a lexical look can be
// led outside: with a → "b/..", the text says "inside" and the disk does not.
func (p *plan) checkLinks() error {
	for i := range p.entries {
		e := &p.entries[i]
		if e.kind != kindLink {
			continue
		}
		hops := hopsMax
		if _, why := p.follow(path.Dir(e.name), e.target, &hops); why != "" {
			return refuse(e.name, "its link to %q %s", e.target, why)
		}
	}
	return nil
}

// follow walks target from the folder dir and returns the place it ends at, or why it must be refused.
func (p *plan) follow(dir, target string, hops *int) (string, string) {
	if *hops--; *hops < 0 {
		return "", "goes through too many links, or in a circle"
	}
	if target == "" || target[0] == '/' {
		return "", "is absolute: use a link relative to its folder"
	}
	at := dir
	for element := range strings.SplitSeq(target, "/") {
		if !p.folder(at) {
			return "", "goes through a file as if it were a folder"
		}
		switch element {
		case "", ".":
			continue
		case "..":
			if at == "." {
				return "", "leaves the package"
			}
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, element)
		i, ok := p.byName[next]
		if !ok {
			return "", "leads to nothing in the package"
		}
		if i < 0 || p.entries[i].kind != kindLink {
			at = next
			continue
		}
		end, why := p.follow(path.Dir(next), p.entries[i].target, hops)
		if why != "" {
			return "", why
		}
		at = end
	}
	return at, ""
}

// folder reports whether a place that is no link is a folder.
func (p *plan) folder(name string) bool {
	if name == "." {
		return true
	}
	i := p.byName[name]
	return i < 0 || p.entries[i].kind == kindFolder
}
