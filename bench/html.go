package bench

import (
	"bytes"
	"fmt"
	"html/template"
	"io"
	"math"
)

// The report is one file with its charts inline as SVG, so that it opens anywhere, years later, without a
// network. A chart library would bring a megabyte of script for two pictures.
var page = template.Must(template.New("report").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.R.Scenario}} – Starling bench</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#223}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{border-bottom:1px solid #dde;padding:.3rem .5rem;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f4f5f8;padding:.8rem;overflow-x:auto;font-size:12px}
svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#556}h2{margin-top:2rem}</style>
<h1>{{.R.Scenario}}</h1>
<p>{{.R.Target}} · {{.R.When.Format "2006-01-02 15:04 MST"}} · commit {{.R.Commit}}<br>
{{.R.Machine.CPU}}, {{.R.Machine.Cores}} cores, kernel {{.R.Machine.Kernel}}, {{.R.Machine.Go}}, load {{.R.Machine.Load}}</p>
<pre>{{.Table}}</pre>
<h2>Latency by percentile</h2>{{.Curve}}
<h2>Served calls by second</h2>{{.Timeline}}
<h2>Command</h2><pre>{{.R.Command}}</pre>
</html>
`))

var colors = []string{"#2a62c9", "#d1601f", "#2c8a57", "#8b46b5", "#a33", "#777"}

// WriteHTML writes the report with charts.
func (r *Report) WriteHTML(w io.Writer) error {
	var table bytes.Buffer
	if err := r.WriteTable(&table); err != nil {
		return err
	}
	err := page.Execute(w, map[string]any{"R": r, "Table": table.String(), "Curve": r.curveChart(), "Timeline": r.timelineChart()})
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

const (
	chartWidth, chartHeight = 900.0, 320.0
	chartLeft, chartBottom  = 70.0, 40.0
	chartTop                = 10.0
)

// chart collects SVG; all texts in it are ours or escaped.
type chart struct{ bytes.Buffer }

func newChart() *chart {
	c := &chart{}
	fmt.Fprintf(c, `<svg viewBox="0 0 %g %g" role="img">`, chartWidth, chartHeight)
	return c
}

func (c *chart) end() template.HTML {
	c.WriteString("</svg>")
	return template.HTML(c.String()) // built from numbers and escaped names only
}

func (c *chart) line(color string, points [][2]float64) {
	fmt.Fprintf(c, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, color)
	for _, p := range points {
		fmt.Fprintf(c, "%.1f,%.1f ", p[0], p[1])
	}
	c.WriteString(`"/>`)
}

func (c *chart) rule(y float64, label string) {
	fmt.Fprintf(c, `<line x1="%g" x2="%g" y1="%.1f" y2="%.1f" stroke="#e4e6ee"/><text x="%g" y="%.1f" text-anchor="end">%s</text>`,
		chartLeft, chartWidth, y, y, chartLeft-6, y+4, label)
}

func (c *chart) tick(x float64, label string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%g" text-anchor="middle">%s</text>`, x, chartHeight-chartBottom+18, label)
}

func (c *chart) legend(names []string) {
	for i, n := range names {
		fmt.Fprintf(c, `<rect x="%g" y="%g" width="10" height="10" fill="%s"/><text x="%g" y="%g">%s</text>`, chartLeft+10+float64(i)*150, chartTop,
			colors[i%len(colors)], chartLeft+25+float64(i)*150, chartTop+9, template.HTMLEscapeString(n))
	}
}

// curveChart draws latency (log) over percentile (log of the share that is slower).
func (r *Report) curveChart() template.HTML {
	c := newChart()
	most := 10.0
	for _, x := range r.Results {
		most = max(most, float64(x.Latency.Max))
	}
	decades := math.Ceil(math.Log10(most))
	y := func(us float64) float64 {
		return chartHeight - chartBottom - math.Log10(max(us, 1))/decades*(chartHeight-chartBottom-chartTop-15)
	}
	x := func(p float64) float64 {
		slower := max(1-p/100, 1e-5)
		return chartLeft + -math.Log10(slower)/5*(chartWidth-chartLeft-30)
	}
	for d := 0.0; d <= decades; d++ {
		c.rule(y(math.Pow(10, d)), micros(int64(math.Pow(10, d))))
	}
	for _, p := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999} {
		c.tick(x(p), fmt.Sprintf("p%g", p))
	}
	var names []string
	for i, res := range r.Results {
		names = append(names, res.Name)
		var points [][2]float64
		for _, p := range res.Curve {
			points = append(points, [2]float64{x(p.Percentile), y(float64(p.Micros))})
		}
		c.line(colors[i%len(colors)], points)
	}
	c.legend(names)
	return c.end()
}

// timelineChart draws calls of every second.
func (r *Report) timelineChart() template.HTML {
	c := newChart()
	most, length := 1, 1
	for _, x := range r.Results {
		length = max(length, len(x.Timeline))
		for _, s := range x.Timeline {
			most = max(most, s.Calls)
		}
	}
	y := func(n float64) float64 {
		return chartHeight - chartBottom - n/float64(most)*(chartHeight-chartBottom-chartTop-15)
	}
	x := func(i int) float64 {
		return chartLeft + float64(i)/float64(max(length-1, 1))*(chartWidth-chartLeft-30)
	}
	for i := range 5 {
		n := float64(most) * float64(i) / 4
		c.rule(y(n), fmt.Sprintf("%.0f/s", n))
	}
	for i := 0; i < length; i += max(length/8, 1) {
		c.tick(x(i), fmt.Sprintf("%d s", i))
	}
	var names []string
	for i, res := range r.Results {
		names = append(names, res.Name)
		var points [][2]float64
		for j, s := range res.Timeline {
			points = append(points, [2]float64{x(j), y(float64(s.Calls))})
		}
		c.line(colors[i%len(colors)], points)
	}
	c.legend(names)
	return c.end()
}
