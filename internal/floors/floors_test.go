// Package floors holds the architecture as tests: imports go down, pure packages stay pure, foreign libraries
// stay behind one door, files and functions stay short, and documents name only what exists.
package floors

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// floor gives each top-level folder its height; a package may import lower folders and its own.
var floor = map[string]int{
	"": 0, "internal": 0,
	"transport": 1, "metrics": 1,
	"sched":   2,
	"cluster": 3, "vmpool": 3, "vpcproxy": 3, "store": 3,
	"actors":   4,
	"frontend": 5,
	"bench":    6, "sim": 6,
	"cmd": 7,
}

// vocabulary lists packages that are words and pure codecs: any floor from 1 up may import them.
var vocabulary = map[string]string{
	"actors/wire":     "the messages, pure; the events and effects of sched are them, the transport does not know them",
	"cluster/partmap": "the map of key ranges, pure; sched tells frontends about it",
}

// pure packages have no goroutine, channel, clock, global random number, file or socket.
var pure = []string{"", "sched", "sched/advise", "sched/flow", "sched/ledger", "sched/place", "sched/scale", "cluster/partmap", "cluster/registry",
	"cluster/balance", "actors/wire", "vmpool/lifecycle", "frontend/leases", "actors/host/guard", "actors/partition/handover", "sim", "sim/load", "sim/rival", "sim/compare",
	"vpcproxy/uplink", "vpcproxy/policy", "vpcproxy/flowtable", "vpcproxy/grant", "vpcproxy/header", "vpcproxy/place", "vpcproxy/resume"}

var impureImports = map[string]string{"os": "files", "net": "sockets", "os/exec": "processes", "sync": "locks", "sync/atomic": "shared state",
	"net/http": "sockets", "syscall": "the kernel", "golang.org/x/sys/unix": "the kernel", "context": "waiting"}

// door names the one folder (or few) that may import a foreign library.
var door = map[string][]string{
	"github.com/DataDog/sketches-go":             {"metrics/profile"},
	"github.com/quic-go/quic-go":                 {"transport/quic", "frontend", "frontend/client"},
	"github.com/lni/dragonboat":                  {"cluster/dragonboat"},
	"github.com/lni/vfs":                         {"cluster/dragonboat"},
	"github.com/asynkron/protoactor-go":          {"actors/protoactor"},
	"gocloud.dev":                                {"store/blob"},
	"github.com/danielgtaylor/huma":              {"frontend/api"},
	"github.com/erofs/go-erofs":                  {"store/image/tree"},
	"github.com/hanwen/go-fuse":                  {"store/lazy"},
	"github.com/tink-crypto/tink-go":             {"store/image"},
	"github.com/parquet-go/parquet-go":           {"store/trace"},
	"github.com/spf13/cobra":                     {"cmd/starling"},
	"github.com/knadh/koanf":                     {"cmd/starling"},
	"github.com/fxamacker/cbor":                  {"cluster", "cluster/manager", "cluster/identity", "store/code", "store/logs", "actors/host", "frontend", "frontend/client", "vpcproxy/probe", "vpcproxy/resume"},
	"github.com/aws/aws-lambda-go":               {"bench/functions/orders-go", "bench/functions/customers-go", "bench/functions/echo-go"},
	"github.com/lib/pq":                          {"bench/functions/customers-go"},
	"github.com/anishathalye/porcupine":          {"internal/judge"},
	"github.com/kata-containers/kata-containers": {"cmd/starling-vmd"},
	"github.com/vishvananda/netlink":             {"vpcproxy/plugboard"},
}

const (
	functionMax = 70
	fileMax     = 600
)

type goFile struct {
	pkg, path string
	test      bool
	ast       *ast.File
	lines     int
}

var fset = token.NewFileSet()

// files parses every Go file of the module once.
func files(t *testing.T) []goFile {
	t.Helper()
	var out []goFile
	err := filepath.WalkDir("../..", func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n != ".." && n != "." && (strings.HasPrefix(n, ".") || n == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, p, src, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel("../..", p)
		dir := path.Dir(filepath.ToSlash(rel))
		if dir == "." {
			dir = ""
		}
		test := strings.HasSuffix(p, "_test.go") || strings.Contains(p, "/testdata/")
		out = append(out, goFile{dir, filepath.ToSlash(rel), test, f, bytes.Count(src, []byte("\n"))})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("found %d Go files: the walk is broken", len(out))
	}
	return out
}

// unraced are packages that start goroutines and are not tested with the race detector.
var unraced = map[string]string{
	"bench":            "its clients; what they drive is raced",
	"cmd/starling":     "its tests run nodes as processes of the binary that make build made",
	"cmd/starling-vmd": "it is a process of its own, too",
}

// TestRaceListHoldsWhatIsConcurrent holds the Makefile's list for the race detector: all that starts goroutines, and nothing pure, which
// would cost a minute and cannot race.
func TestRaceListHoldsWhatIsConcurrent(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?m)^RACE \?= (.*)$`).FindStringSubmatch(string(makefile))
	if list == nil {
		t.Fatal("the Makefile has no line RACE")
	}
	raced := func(pkg string) bool {
		return slices.ContainsFunc(strings.Fields(list[1]), func(pattern string) bool {
			below, all := strings.CutSuffix(pattern, "/...")
			return pattern == "./"+pkg || all && (below == "./"+pkg || strings.HasPrefix("./"+pkg, below+"/"))
		})
	}
	for _, pkg := range pure {
		if raced(pkg) {
			t.Errorf("%q is pure: it has nothing for the race detector", pkg)
		}
	}
	starts, tested := map[string]bool{}, map[string]bool{}
	for _, f := range files(t) {
		tested[f.pkg] = tested[f.pkg] || strings.HasSuffix(f.path, "_test.go")
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				starts[f.pkg] = true
			case *ast.SelectorExpr:
				if n.Sel.Name == "Go" {
					starts[f.pkg] = true
				}
			}
			return true
		})
	}
	for pkg := range starts {
		if tested[pkg] && !raced(pkg) && unraced[pkg] == "" {
			t.Errorf("%s starts goroutines and is not in the Makefile's RACE", pkg)
		}
	}
}

func folder(pkg string) string { return strings.SplitN(pkg, "/", 2)[0] }

func imports(f goFile) []string {
	var out []string
	for _, i := range f.ast.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

func TestImportsGoDown(t *testing.T) {
	for _, f := range files(t) {
		from := folder(f.pkg)
		height, known := floor[from]
		if !known {
			t.Errorf("%s: folder %q has no floor: add it to the table with a reason", f.path, from)
			continue
		}
		for _, imp := range imports(f) {
			rest, ours := strings.CutPrefix(imp, "starling/")
			if imp == "starling" || !ours || folder(rest) == from || f.test {
				continue
			}
			if _, ok := vocabulary[rest]; ok && height > 1 {
				continue
			}
			if floor[folder(rest)] >= height {
				t.Errorf("%s imports %s: imports go down", f.path, rest)
			}
		}
	}
}

func TestForeignLibrariesStayBehindOneDoor(t *testing.T) {
	for _, f := range files(t) {
		if f.test {
			continue
		}
		for _, imp := range imports(f) {
			for lib, doors := range door {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(doors, f.pkg) {
					t.Errorf("%s imports %s: only %v may", f.path, imp, doors)
				}
			}
		}
	}
}

func TestPurePackagesStayPure(t *testing.T) {
	for _, f := range files(t) {
		if f.test || !slices.Contains(pure, f.pkg) {
			continue
		}
		for _, imp := range imports(f) {
			if why, bad := impureImports[imp]; bad {
				t.Errorf("%s imports %s: a pure package has no %s", f.path, imp, why)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt, *ast.ChanType, *ast.SelectStmt, *ast.SendStmt:
				t.Errorf("%s: a pure package has no goroutine or channel", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				id, ok := n.X.(*ast.Ident)
				if ok && id.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "NewTimer", "NewTicker", "AfterFunc"}, n.Sel.Name) {
					t.Errorf("%s: a pure package has no clock: take time as an argument", fset.Position(n.Pos()))
				}
				if ok && id.Name == "rand" && ast.IsExported(n.Sel.Name) && !slices.Contains([]string{"Rand", "New", "NewPCG", "PCG", "Source"}, n.Sel.Name) {
					t.Errorf("%s: a pure package has no global random number: take *rand.Rand", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	for _, f := range files(t) {
		if f.test {
			continue
		}
		if f.lines > fileMax {
			t.Errorf("%s has %d lines: at most %d", f.path, f.lines, fileMax)
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > functionMax {
				t.Errorf("%s: %s has %d lines: at most %d", f.path, fn.Name.Name, n, functionMax)
			}
		}
	}
}

func TestPackagesAndExportedNamesAreDocumented(t *testing.T) {
	documented, seen := map[string]bool{}, map[string]bool{}
	for _, f := range files(t) {
		seen[f.pkg] = true
		documented[f.pkg] = documented[f.pkg] || f.ast.Doc != nil
		if f.test || strings.HasPrefix(f.pkg, "bench/functions/") {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !oneLiner(d) {
					t.Errorf("%s: exported %s has no comment", fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s: exported type %s has no comment", fset.Position(ts.Pos()), ts.Name.Name)
					}
				}
			}
		}
	}
	for pkg := range seen {
		if !documented[pkg] {
			t.Errorf("package %q has no comment", pkg)
		}
	}
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	x := d.Recv.List[0].Type
	if s, ok := x.(*ast.StarExpr); ok {
		x = s.X
	}
	if i, ok := x.(*ast.IndexExpr); ok {
		x = i.X
	}
	id, ok := x.(*ast.Ident)
	return ok && id.IsExported()
}

// oneLiner permits methods that only name a constant, such as wire's Kind methods.
func oneLiner(d *ast.FuncDecl) bool {
	return d.Recv != nil && fset.Position(d.Pos()).Line == fset.Position(d.End()).Line
}

var (
	leftover = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b|not implemented|unimplemented`)
	codeName = regexp.MustCompile("`([a-z][a-z0-9_]*(?:/[a-zA-Z0-9_.-]+)+)`")
)

func TestNothingIsLeftForLater(t *testing.T) {
	for _, f := range files(t) {
		if f.pkg == "internal/floors" {
			continue
		}
		for _, g := range f.ast.Comments {
			if leftover.MatchString(g.Text()) {
				t.Errorf("%s: finish it or delete it: %s", fset.Position(g.Pos()), strings.TrimSpace(g.Text()))
			}
		}
	}
}

// documents returns the paths of all documents but those that tell the past: decisions and results.
func documents(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir("../..", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && p != "../.." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "docs" || d.Name() == "results") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(p, ".md") {
			paths = append(paths, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestDocumentsNameWhatExists checks every `folder/file` that the documents put in back quotes.
func TestDocumentsNameWhatExists(t *testing.T) {
	named := 0
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range codeName.FindAllStringSubmatch(string(text), -1) {
			p := m[1]
			if _, ours := floor[folder(p)]; !ours && folder(p) != "docs" {
				continue
			}
			named++
			if _, err := os.Stat("../../" + p); err != nil {
				if _, err := os.Stat("../../" + path.Dir(p)); err != nil || !strings.Contains(path.Base(p), ".") || strings.HasSuffix(p, ".go") || strings.HasSuffix(p, ".md") {
					t.Errorf("%s names %s, which does not exist", filepath.Base(doc), p)
				}
			}
		}
	}
	if named == 0 {
		t.Error("the documents name no file: the pattern is broken")
	}
}
