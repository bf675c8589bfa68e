package shim

import (
	"path/filepath"
	"strings"

	"starling/vmpool/process/jail"
)

// confine takes from this thread, which becomes QEMU, everything that an emulator has no need of: capabilities, files but its own,
// and signals to others. It stays root, whose files these are, but a root without rights. Its network is starling-vmd's: none.
func confine(dir string, args []string) error {
	if err := jail.DropCapabilities(); err != nil {
		return err
	}
	return jail.Restrict(files(dir, args))
}

// files are what QEMU may touch: itself, the devices it needs, what its arguments name, and the shim's. The code of a function is
// not among them: it comes as an open file.
func files(dir string, args []string) []jail.Rule {
	rules := []jail.Rule{{Path: "/usr"}, {Path: "/bin"}, {Path: "/lib"}, {Path: "/lib64"}, {Path: "/etc/ld.so.cache"}, {Path: "/dev/null", Write: true},
		{Path: "/dev/urandom"}, {Path: "/dev/kvm", Write: true}, {Path: dir}, {Path: filepath.Join(dir, RootFile)}}
	memory, clone := "", false
	for i, arg := range args[:max(0, len(args)-1)] {
		next := args[i+1]
		switch arg {
		case "-pidfile":
			rules = append(rules, jail.Rule{Path: filepath.Dir(next), Write: true})
		case "-kernel", "-initrd":
			rules = append(rules, jail.Rule{Path: next})
		case "-incoming":
			clone = true
		case "-object":
			for _, o := range strings.Split(next, ",") {
				if path, ok := strings.CutPrefix(o, "mem-path="); ok {
					memory = path
				}
			}
		}
	}
	if memory != "" { // a template is written; a clone reads its state, and QEMU opens memory for writing though it maps a copy
		rules = append(rules, jail.Rule{Path: filepath.Dir(memory), Write: !clone}, jail.Rule{Path: memory, Write: true})
	}
	return rules
}
