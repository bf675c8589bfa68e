package crash

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Every point is in the list, and the program comes by it at exactly one place.
func TestEveryPointIsSomewhere(t *testing.T) {
	places := map[string]int{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "crash" {
					places[s.Sel.Name]++
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), "crash.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	points := 0
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name != "All" {
			points++
			if name := v.Names[0].Name; places[name] != 1 {
				t.Errorf("%s is at %d places", name, places[name])
			}
		}
		return true
	})
	seen := map[Point]bool{}
	for _, p := range All {
		seen[p] = true
	}
	if len(seen) != points || len(All) != points {
		t.Errorf("%d points, %d in the list, %d of them different", points, len(All), len(seen))
	}
}
