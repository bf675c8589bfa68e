package compare

import (
	"bytes"
	"fmt"
	"html/template"
	"io"
	"math"
	"time"
)

// A Report is all that an analysis found.
type Report struct {
	Title   string            `json:"title"`
	Load    string            `json:"load"`   // what was replayed, with its seed
	Rivals  []*Result         `json:"rivals"` // and the default policy as it is now
	Sweep   []*Result         `json:"sweep"`
	Front   []*Result         `json:"front"`              // of the sweep
	Equal   []Equal           `json:"equal"`              // each rival and what of the sweep costs no more
	Tuned   *Result           `json:"tuned,omitempty"`    // the best within the budget
	Setting map[string]string `json:"settings,omitempty"` // of Tuned, all of them
}

// Equal sets the best of the sweep that costs no more instance-seconds beside one policy.
type Equal struct {
	Policy string  `json:"policy"`
	Cold   float64 `json:"cold"` // ratio
	Best   string  `json:"best"` // "" when all of the sweep cost more
	Ours   float64 `json:"ours"` // its cold ratio
}

// WriteEqual writes the comparison at equal cost as a table.
func (r Report) WriteEqual(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%-20s %9s %9s %8s  %s\n", "for no more than", "cold", "ours", "share", "with")
	for _, e := range r.Equal {
		if e.Best == "" {
			fmt.Fprintf(&b, "%-20s %8.4f%% %9s %8s  all of the sweep cost more\n", e.Policy, 100*e.Cold, "", "")
			continue
		}
		fmt.Fprintf(&b, "%-20s %8.4f%% %8.4f%% %7.1f%%  %s\n", e.Policy, 100*e.Cold, 100*e.Ours, 100*e.Ours/max(e.Cold, 1e-12), e.Best)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Compare fills Front and Equal from the results.
func (r *Report) Compare() {
	r.Front, r.Equal = Front(r.Sweep), nil
	for _, x := range r.Rivals {
		e := Equal{Policy: x.Policy, Cold: x.ColdRatio()}
		if best := Best(r.Sweep, x.InstanceSeconds, math.MaxInt64); best != nil {
			e.Best, e.Ours = best.Policy, best.ColdRatio()
		}
		r.Equal = append(r.Equal, e)
	}
}

// The page is one file with its charts inline as SVG, as those of package bench are.
var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.R.Title}}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#223}
pre{background:#f4f5f8;padding:.8rem;overflow-x:auto;font-size:12px}svg{width:100%;height:auto}
text{font:11px system-ui,sans-serif;fill:#556}h2{margin-top:2rem}</style>
<h1>{{.R.Title}}</h1><p>{{.R.Load}}</p>
<h2>Cold starts against instance-seconds</h2>{{.Cold}}
<h2>p99 wait against instance-seconds</h2>{{.Wait}}
<h2>Policies</h2><pre>{{.Table}}</pre>{{if .R.Equal}}<h2>At no more instance-seconds</h2><pre>{{.Equal}}</pre>{{end}}
{{if .Front}}<h2>The front</h2><pre>{{.Front}}</pre>{{end}}
</html>
`))

// WriteHTML writes the report with its charts.
func WriteHTML(w io.Writer, r Report) error {
	var table, front, equal bytes.Buffer
	if err := WriteTable(&table, r.Rivals); err != nil {
		return err
	}
	if len(r.Front) > 0 {
		WriteTable(&front, r.Front)
		r.WriteEqual(&equal)
	}
	cold := func(x *Result) float64 { return 100 * x.ColdRatio() }
	wait := func(x *Result) float64 { return float64(x.WaitP99) / float64(time.Millisecond) }
	err := page.Execute(w, map[string]any{"R": r, "Table": table.String(), "Front": front.String(), "Equal": equal.String(),
		"Cold": scatter(r, cold, "%g %%"), "Wait": scatter(r, wait, "%g ms")})
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

const (
	wide, high   = 900.0, 380.0
	left, bottom = 80.0, 40.0
	right, top   = 30.0, 15.0
)

// axis maps values to places, by their logarithm.
type axis struct{ low, high, from, to float64 }

func (a axis) at(x float64) float64 {
	return a.from + (math.Log10(max(x, a.low))-math.Log10(a.low))/(math.Log10(a.high)-math.Log10(a.low))*(a.to-a.from)
}

// span returns decades that hold all values; least stands for 0.
func span(rs []*Result, of func(*Result) float64, least float64) (low, high float64) {
	low, high = math.Inf(1), least*10
	for _, r := range rs {
		low, high = min(low, max(of(r), least)), max(high, of(r))
	}
	low = math.Pow(10, math.Floor(math.Log10(min(low, high))))
	return low, max(math.Pow(10, math.Ceil(math.Log10(high))), low*10)
}

// scatter draws the sweep grey, its front as a line and the policies by name.
func scatter(r Report, of func(*Result) float64, label string) template.HTML {
	all := append(append([]*Result{}, r.Rivals...), r.Sweep...)
	cost := func(x *Result) float64 { return x.InstanceSeconds }
	xl, xh := span(all, cost, 1)
	yl, yh := span(all, of, 1e-4)
	x, y := axis{xl, xh, left, wide - right}, axis{yl, yh, high - bottom, top}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img">`, wide, high)
	for v := yl; v <= yh*1.01; v *= 10 {
		fmt.Fprintf(&b, `<line x1="%g" x2="%g" y1="%.1f" y2="%.1f" stroke="#e4e6ee"/><text x="%g" y="%.1f" text-anchor="end">`+label+`</text>`,
			left, wide-right, y.at(v), y.at(v), left-6, y.at(v)+4, math.Round(v*1e4)/1e4)
	}
	for v := xl; v <= xh*1.01; v *= 10 {
		fmt.Fprintf(&b, `<text x="%.1f" y="%g" text-anchor="middle">%.0e instance-s</text>`, x.at(v), high-bottom+18, v)
	}
	dot := func(p *Result, color string, size float64) {
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="%g" fill="%s"><title>%s</title></circle>`, x.at(cost(p)), y.at(of(p)), size, color, template.HTMLEscapeString(p.Policy))
	}
	for _, p := range r.Sweep {
		dot(p, "#b9bfce", 3)
	}
	b.WriteString(`<polyline fill="none" stroke="#2a62c9" stroke-width="1.5" points="`)
	for _, p := range r.Front {
		fmt.Fprintf(&b, "%.1f,%.1f ", x.at(cost(p)), y.at(of(p)))
	}
	b.WriteString(`"/>`)
	for _, p := range r.Rivals {
		dot(p, "#d1601f", 5)
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f">%s</text>`, x.at(cost(p))+8, y.at(of(p))+4, template.HTMLEscapeString(p.Policy))
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) // numbers and escaped names only
}
