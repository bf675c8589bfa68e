// Package metrics gathers the numbers of all parts of a node into one Prometheus exposition. Each part makes its
// own Set of github.com/VictoriaMetrics/metrics and holds pointers into it; nothing here is global.
package metrics

import (
	"bufio"
	"bytes"
	"cmp"
	"io"
	"slices"
	"strings"
	"sync"

	vm "github.com/VictoriaMetrics/metrics"
)

// A Registry is the Sets of one node. Sets come and go with their parts (a partition's Set is dropped when the
// partition moves away). The zero Registry is ready; it is safe for concurrent use.
type Registry struct {
	mu   sync.Mutex // guards sets and help; held while nothing is called
	sets []*vm.Set
	help map[string]string
}

// Add includes a set in the exposition; adding it again or a nil set does nothing.
func (r *Registry) Add(set *vm.Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if set != nil && !slices.Contains(r.sets, set) {
		r.sets = append(r.sets, set)
	}
}

// Remove drops a set.
func (r *Registry) Remove(set *vm.Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sets = slices.DeleteFunc(r.sets, func(s *vm.Set) bool { return s == set })
}

// Describe gives the help text of one family, such as "starling_calls_total". Families without one get a text made of their name.
func (r *Registry) Describe(family, help string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.help == nil {
		r.help = map[string]string{}
	}
	r.help[family] = help
}

// WritePrometheus writes every family once, sorted, with HELP and TYPE, samples of all sets together. The text passes
// "promtool check metrics" as long as the parts follow its naming rules.
func (r *Registry) WritePrometheus(w io.Writer) error {
	r.mu.Lock()
	sets := slices.Clone(r.sets)
	r.mu.Unlock()
	var text bytes.Buffer
	writeProcess(&text)
	for _, s := range sets {
		s.WritePrometheus(&text)
	}
	out := bufio.NewWriter(w)
	for _, f := range families(text.String()) {
		r.writeFamily(out, f)
	}
	return out.Flush()
}

func (r *Registry) writeFamily(out *bufio.Writer, f *family) {
	r.mu.Lock()
	help, ok := r.help[f.name]
	r.mu.Unlock()
	if !ok {
		help = sentence(f.name)
	}
	out.WriteString("# HELP " + f.name + " " + help + "\n# TYPE " + f.name + " " + f.kind + "\n")
	for _, l := range f.lines {
		out.WriteString(l)
		out.WriteByte('\n')
	}
}

// A family is all samples of one metric name.
type family struct {
	name, kind string
	lines      []string
}

// families groups exposition lines by family, in order of name. A name with le buckets is a histogram, one that
// ends in _total a counter, the rest are gauges.
func families(text string) []*family {
	byName := map[string]*family{}
	histograms := map[string]bool{}
	for line := range strings.Lines(text) {
		if name, _ := split(line); strings.HasSuffix(name, "_bucket") && strings.Contains(line, `le="`) {
			histograms[strings.TrimSuffix(name, "_bucket")] = true
		}
	}
	for line := range strings.Lines(text) {
		name, ok := split(line)
		if !ok {
			continue
		}
		kind := "gauge"
		if strings.HasSuffix(name, "_total") {
			kind = "counter"
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); base != name && histograms[base] {
				name, kind = base, "histogram"
			}
		}
		f := byName[name]
		if f == nil {
			f = &family{name: name, kind: kind}
			byName[name] = f
		}
		f.lines = append(f.lines, strings.TrimSuffix(line, "\n"))
	}
	out := make([]*family, 0, len(byName))
	for _, f := range byName {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *family) int { return cmp.Compare(a.name, b.name) })
	return out
}

// split returns the metric name of a sample line; ok is false for comments and blank lines.
func split(line string) (name string, ok bool) {
	end := strings.IndexAny(line, "{ ")
	if end <= 0 || line[0] == '#' {
		return "", false
	}
	return line[:end], true
}

// sentence makes a help text of a name: "starling_host_starts_total" reads "Host starts total."
func sentence(name string) string {
	s := strings.ReplaceAll(strings.TrimPrefix(name, "starling_"), "_", " ")
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
